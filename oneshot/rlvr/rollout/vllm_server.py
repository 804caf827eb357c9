"""The rollout engine on vLLM's OpenAI-compatible server, in a process of its own.

`oneshot rlvr serve` starts the server; it may live in another virtual environment. Weights go
through a file in a folder that both see (shared memory by default): one file per update, removed as
soon as the server has read it. The server's address must be private: any client that reaches it
can replace its weights.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from oneshot.rlvr.config import ModelConfig, RolloutConfig
from oneshot.rlvr.rollout.engine import Rollout, assemble, check_prompts
from oneshot.rlvr.rollout.vllm_settings import (
    Vocabulary,
    engine_arguments,
    prompt_seeds,
    request_settings,
    server_argv,
)
from oneshot.training.errors import RunError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "policy"
CONNECTIONS = 128


class RolloutServerError(RunError):
    """The server cannot be reached or refused a request."""


class VllmServerEngine:
    """Samples through a server of `oneshot rlvr serve`.

    Args:
        tokenizer: For the texts.
        vocabulary: Stop and padding ids.
        rollout: Temperature, lengths, address.
        device: Where the tensors of a rollout go.

    Raises:
        RolloutServerError: Nobody answers at the address.
    """

    needs_weights = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        rollout: RolloutConfig,
        *,
        device: str,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.rollout = rollout
        self.device = device
        self._call("/health")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seed: int,
        *,
        indices: Sequence[int] | None = None,
        limit: int | None = None,
    ) -> Rollout:
        """Samples `n` responses to each prompt; see `RolloutEngine`."""
        check_prompts(prompts, self.vocabulary.size)

        def ask(prompt: Sequence[int], own: int) -> list[dict[str, Any]]:
            stops = self.vocabulary.stop_ids
            answer = self._call(
                "/v1/completions",
                {
                    "model": NAME,
                    "prompt": list(prompt),
                    "return_token_ids": True,
                    **request_settings(self.rollout, stops, n, own, limit),
                },
            )
            return sorted(answer["choices"], key=lambda choice: choice["index"])

        # A request each: one request of many prompts would give them all the same seed.
        with ThreadPoolExecutor(min(CONNECTIONS, len(prompts))) as pool:
            answers = list(pool.map(ask, prompts, prompt_seeds(seed, len(prompts), indices)))
        choices = [choice for answer in answers for choice in answer]
        return assemble(
            [prompt for prompt in prompts for _ in range(n)],
            [choice["token_ids"] for choice in choices],
            [choice["finish_reason"] == "stop" for choice in choices],
            [choice["logprobs"]["token_logprobs"] for choice in choices],
            self.tokenizer,
            pad_id=self.vocabulary.pad_id,
            vocabulary=self.vocabulary.size,
            device=self.device,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Sends all weights and lets the server forget the cached prompts."""
        from safetensors.torch import save_file

        tensors = {name: value.detach().cpu().contiguous() for name, value in weights}
        with tempfile.TemporaryDirectory(dir=self.rollout.vllm.weights_folder) as folder:
            path = Path(folder) / "weights.safetensors"
            save_file(tensors, path)
            body = {"method": "receive_file", "kwargs": {"path": str(path)}}
            self._call("/collective_rpc", body)
        self._call("/reset_prefix_cache", {})

    def close(self) -> None:
        """The server goes on: it was not started here."""

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        url = self.rollout.vllm.url.rstrip("/") + path
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.rollout.vllm.timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            answer = error.read().decode(errors="replace")[:500]
            raise RolloutServerError(f"{url} answered {error.code}: {answer}") from error
        except OSError as error:
            raise RolloutServerError(
                f"no answer from the rollout server at {url} ({error}); start it with "
                "`oneshot rlvr serve` and the config of the run, or set rollout.vllm.url"
            ) from error
        return json.loads(text) if text else None


def serve(
    source: str, model: ModelConfig, rollout: RolloutConfig, seed: int, argv: list[str]
) -> None:
    """Becomes vLLM's server for a run; does not return.

    Args:
        source: Folder or hub name of the model.
        model: For the type of the weights.
        rollout: Lengths, address and vLLM's own options.
        seed: Of vLLM itself.
        argv: More options of vLLM's server.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ModuleNotFoundError(
            "oneshot rlvr serve needs vllm, which is not installed: pip install vllm (on a CPU: "
            "see `make test-vllm`)"
        )
    address = urllib.parse.urlsplit(rollout.vllm.url)
    arguments = {
        **engine_arguments(source, model, rollout),
        "served_model_name": NAME,
        "seed": seed % 2**31,
        "host": address.hostname or "127.0.0.1",
        "port": address.port or 8000,
    }
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    # Opens /collective_rpc and /reset_prefix_cache, by which the trainer sends weights.
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
    os.execve(sys.executable, [*module, *server_argv(arguments), *argv], environment)
