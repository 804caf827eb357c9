"""One thread: the models are so small that a second one only waits for the first."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory):
    """Folder with llama/, t5/ and tasks.jsonl."""
    import poly_runs

    folder = tmp_path_factory.mktemp("digits")
    for kind in ("llama", "t5"):
        poly_runs.write_model(folder / kind, kind)
    poly_runs.write_tasks(folder / "tasks.jsonl")
    return folder
