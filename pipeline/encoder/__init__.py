"""From token ids to vectors; the only room with torch."""
