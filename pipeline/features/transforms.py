"""What is fitted once and then the same for every table: PCA, whitening, clusters, named centroids, an int8 scale."""

import io
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Projection = Literal["none", "pca", "whiten"]

CLIPPED = 0.001
"""Share of the numbers that a scale for the corpus lets saturate: the few largest would coarsen all others."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What is to be fitted."""

    projection: Projection
    components: int | None
    """Numbers that a projected vector has; None = as many as before."""
    clusters: int | None
    has_scale: bool
    """Whether int8 codes share one scale."""
    normalize: bool
    """Scale projected vectors to length 1."""
    seed: int
    has_thresholds: bool = False
    """Whether a bit of a binary code is set above the median of its dimension, not above zero."""


@dataclass(frozen=True, slots=True)
class Transform:
    """A fitted transform of vectors with D numbers into vectors with K, and what else is told of each."""

    mean_D: NDArray[np.float32]
    """Empty if there is no projection."""
    components_KD: NDArray[np.float32]
    """Of whitening, divided by the deviation along each."""
    normalize: bool
    centers_CK: NDArray[np.float32]
    """Of the clusters, among projected vectors; (0, K) = none."""
    scale: float
    """Of int8 codes; 0 = each row has its own."""
    thresholds_K: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Of binary codes; empty = zero."""

    def project(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the projected vectors (N, K), or the same ones if there is no projection."""
        if not self.mean_D.size:
            return vectors_ND
        projected_NK = np.asarray((vectors_ND - self.mean_D) @ self.components_KD.T, np.float32)
        return unit(projected_NK) if self.normalize else projected_NK

    def clusters_of(self, vectors_NK: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return the number of the nearest centre of each projected vector."""
        norms_C = np.einsum("ck,ck->c", self.centers_CK, self.centers_CK)
        return np.asarray(np.argmin(norms_C - 2 * (vectors_NK @ self.centers_CK.T), axis=1), np.int32)

    def codes_of(self, vectors_NK: NDArray[np.float32]) -> NDArray[np.int8]:
        """Return int8 codes: vector ≈ code · scale; larger numbers saturate."""
        return np.asarray(np.clip(np.rint(vectors_NK / np.float32(self.scale)), -127, 127), np.int8)

    def above_thresholds(self, vectors_NK: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return projected vectors of which the positive numbers are the bits that are set."""
        return vectors_NK - self.thresholds_K if self.thresholds_K.size else vectors_NK

    def to_bytes(self) -> bytes:
        """Return all of it as one .npz file, without pickled objects."""
        stream = io.BytesIO()
        np.savez(
            stream,
            mean_D=self.mean_D,
            components_KD=self.components_KD,
            normalize=np.array(self.normalize),
            centers_CK=self.centers_CK,
            scale=np.array(self.scale),
            thresholds_K=self.thresholds_K,
        )
        return stream.getvalue()

    @staticmethod
    def from_bytes(content: bytes) -> "Transform":
        """Return the transform that `to_bytes` wrote.

        Raises:
            ValueError: it is none.
        """
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return Transform(
                arrays["mean_D"],
                arrays["components_KD"],
                bool(arrays["normalize"]),
                arrays["centers_CK"],
                float(arrays["scale"]),
                arrays["thresholds_K"] if "thresholds_K" in arrays else np.zeros(0, np.float32),
            )


def fitted(vectors_SD: NDArray[np.float32], fit: Fit) -> Transform:
    """Fit a transform on a sample of vectors.

    Raises:
        ValueError: the sample has too few vectors for the components or clusters; the message says how many.
    """
    mean_D, components_KD = _projection(vectors_SD, fit)
    none_C0 = np.zeros((0, 0), np.float32)
    transform = Transform(mean_D, components_KD, fit.normalize, none_C0, 0.0)
    projected_SK = transform.project(vectors_SD)
    centers_CK = none_C0 if fit.clusters is None else _centers(projected_SK, fit.clusters, fit.seed)
    scale = float(np.quantile(np.abs(projected_SK), 1 - CLIPPED)) / 127 if fit.has_scale else 0.0
    medians_K = np.median(projected_SK, axis=0) if fit.has_thresholds else np.zeros(0)
    return Transform(mean_D, components_KD, fit.normalize, centers_CK, scale, medians_K.astype(np.float32))


def _projection(vectors_SD: NDArray[np.float32], fit: Fit) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if fit.projection == "none":
        return np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
    from sklearn.decomposition import PCA

    components = fit.components or vectors_SD.shape[1]
    if components >= len(vectors_SD):
        raise ValueError(f"{components} components need more than {components} vectors; there are {len(vectors_SD)}")
    pca = PCA(components, svd_solver="covariance_eigh").fit(vectors_SD.astype(np.float64))
    components_KD = pca.components_
    if fit.projection == "whiten":
        deviations_K1 = np.sqrt(np.maximum(pca.explained_variance_, 0))[:, None]
        floor = 1e-6 * deviations_K1.max()  # along a direction in which nothing varies there is nothing to stretch
        components_KD = np.where(deviations_K1 > floor, components_KD / np.maximum(deviations_K1, floor), 0)
    return pca.mean_.astype(np.float32), components_KD.astype(np.float32)


def _centers(vectors_SK: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.float32]:
    from sklearn.cluster import KMeans

    if clusters > len(vectors_SK):
        raise ValueError(f"{clusters} clusters need as many vectors; there are {len(vectors_SK)}")
    return np.asarray(KMeans(clusters, n_init=1, random_state=seed).fit(vectors_SK).cluster_centers_, np.float32)


def cosines_to(vectors_ND: NDArray[np.float32], centroids_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine (N, M) of each vector to each centroid; 0 where one of them is zero."""
    return np.asarray(unit(vectors_ND) @ unit(centroids_MD).T, np.float32)


def distances_to(vectors_ND: NDArray[np.float32], centroids_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the Euclidean distance (N, M) of each vector to each centroid."""
    return np.stack([np.linalg.norm(vectors_ND - centroid_D, axis=1) for centroid_D in centroids_MD], axis=1)


def unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale vectors to length 1; a zero vector stays zero."""
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.maximum(norms_N1, 1e-12), np.float32)
