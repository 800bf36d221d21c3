"""From vectors of texts to features of entities: pooled, windowed and joined without a look into the future."""
