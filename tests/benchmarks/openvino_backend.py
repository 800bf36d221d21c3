"""`SentenceTransformer.encode` with its own OpenVINO backend: texts in, vectors out; for an environment of its own."""

import sys
from multiprocessing.connection import Connection

from sentence_transformers import SentenceTransformer


def main(descriptor: str, folder: str, hint: str) -> None:
    """Answer lists of texts with their vectors until the other end of a connection is closed.

    Args:
        descriptor: of the connection.
        hint: f32 | bf16; by itself OpenVINO chooses by the CPU.
    """
    connection = Connection(int(descriptor))
    options = {"ov_config": {"INFERENCE_PRECISION_HINT": hint}}
    model = SentenceTransformer(folder, device="cpu", backend="openvino", local_files_only=True, model_kwargs=options)
    connection.send("ready")
    while True:
        try:
            texts = connection.recv()
        except EOFError:
            return
        connection.send(model.encode(texts, normalize_embeddings=True, show_progress_bar=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
