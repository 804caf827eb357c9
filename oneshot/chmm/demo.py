"""Weak labels on a small scale: four unreliable sources, and no gold label in training.

Each source is reliable on some words and not on others (`synthetic.corpus`). A vote trusts every
source alike; an HMM learns how far to trust each; a CHMM learns on which words to trust it. The
table shows how many entities of unseen sentences each gets right, the picture what the CHMM
learned about the sources beside the truth.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from oneshot.chmm import metrics
from oneshot.chmm.baselines.hmm import ClassicalHMM
from oneshot.chmm.baselines.vote import MajorityVote
from oneshot.chmm.config import ChmmConfig, DataConfig, RunConfig, TrainingConfig
from oneshot.chmm.label_model.batches import Examples, collate
from oneshot.chmm.label_model.observations import observations
from oneshot.chmm.label_model.training import make_model, make_optimizer, train_chmm
from oneshot.chmm.labels import Ids
from oneshot.chmm.model import CHMM
from oneshot.chmm.synthetic import corpus as synthetic
from oneshot.chmm.synthetic.corpus import Synthetic
from oneshot.training.grid import save_figure, write_json

FEATURES = 16


def run_demo(
    seed: int = 0, *, output: str | Path | None = None, epochs: int = 15
) -> dict[str, Any]:
    """Compares a vote, an HMM and a CHMM on generated sentences (less than a minute).

    Args:
        seed: Of the sentences, the votes and the training.
        output: Folder for demo.json and demo.png (created); None writes nothing.
        epochs: Of the CHMM.

    Returns:
        "methods": metrics on the test split by method (f1, precision, recall; nll and ece of the
        posteriors; log_likelihood_per_token), "reliability": learned and true share of right labels
        of each source in each domain of words, "seconds".
    """
    start = time.perf_counter()
    made = synthetic.generate(seed=seed, n_features=FEATURES)
    dataset = made.dataset
    train, test = dataset.split("train"), dataset.split("test")
    methods: dict[str, dict[str, Any]] = {}
    vote = MajorityVote(dataset.labels, "abstain")
    methods["majority vote"] = metrics.evaluate(
        dataset.labels, test, vote.predict(test), vote.posteriors(test)
    )
    hmm = ClassicalHMM(dataset.labels).fit(train)
    methods["HMM"] = metrics.evaluate(
        dataset.labels, test, hmm.predict(test), hmm.posteriors(test), hmm.log_likelihood(test)
    )

    examples = make_examples(made)
    config = ChmmConfig(
        data=DataConfig(path="synthetic", rule="abstain"),
        run=RunConfig(output="", device="cpu"),
        training=TrainingConfig(
            epochs=epochs, batch_size=32, nn_lr=0.01, selection="likelihood", constrained=True
        ),
    )
    model = make_model(config, dataset.labels, dataset.sources, examples, None, seed)
    train_chmm(
        model,
        make_optimizer(model, config.training),
        examples["train"],
        examples["valid"],
        config.training,
        seed,
    )
    predicted = model.predict(examples["test"], constrained=True)
    methods["CHMM"] = metrics.evaluate(
        dataset.labels,
        test,
        predicted.labels,
        predicted.posteriors,
        float(predicted.log_likelihood.sum()),
    )
    result = {
        "seed": seed,
        "methods": methods,
        "reliability": reliability(model, examples["test"], made.domains["test"]),
        "seconds": round(time.perf_counter() - start, 1),
    }
    if output is not None:
        write_json(Path(output) / "demo.json", result)
        plot(result, Path(output) / "demo.png")
    return result


def make_examples(made: Synthetic) -> dict[str, Examples]:
    """Word vectors in the place of BERT's; the begin of a sentence has a vector of zeros."""
    begin = torch.zeros(1, FEATURES)
    return {
        split: Examples(
            sentences,
            [torch.cat([begin, torch.from_numpy(x)]) for x in made.features[split]],
            observations(sentences, len(made.dataset.labels), "abstain"),
        )
        for split, sentences in made.dataset.splits.items()
    }


def reliability(
    model: CHMM, examples: Examples, domains: list[Ids]
) -> dict[str, list[list[float]]]:
    """[S][domains]: probability that a source's label is right on a word inside an entity.

    "learned" is the mean diagonal of the CHMM's emission matrices over the entity labels; "true"
    is counted with the gold labels, among the tokens where the source speaks.
    """
    learned: npt.NDArray[np.float64] = np.zeros((model.n_sources, synthetic.N_DOMAINS))
    true, counts, said = (
        np.zeros_like(learned),
        np.zeros(synthetic.N_DOMAINS),
        np.zeros_like(learned),
    )
    for i, domain in enumerate(domains):
        matrices = model.emission_matrices(collate(examples, [i]))[1:]
        diagonal = matrices.diagonal(dim1=-2, dim2=-1)[..., 1:].mean(-1).numpy()  # [T, S]
        sentence = examples.sentences[i]
        assert sentence.gold is not None
        for d in range(synthetic.N_DOMAINS):
            here = domain == d
            learned[:, d] += diagonal[here].sum(0)
            counts[d] += here.sum()
            inside = here & (sentence.gold > 0)
            votes = sentence.votes[inside]
            said[:, d] += (votes >= 0).sum(0)
            true[:, d] += (votes == sentence.gold[inside][:, None]).sum(0)
    return {"learned": (learned / counts).tolist(), "true": (true / said).tolist()}


def print_table(result: Mapping[str, Any]) -> None:
    """Prints the comparison."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Four unreliable sources, no gold labels: entities of unseen sentences")
    table.add_column("method")
    for name in ("F1", "precision", "recall", "NLL of gold", "ECE", "log-likelihood/token"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in result["methods"].items():
        likelihood = row.get("log_likelihood_per_token")
        table.add_row(
            name,
            *(f"{row[key]:.1%}" for key in ("f1", "precision", "recall")),
            f"{row['nll']:.3f}",
            f"{row['ece']:.3f}",
            "" if likelihood is None else f"{likelihood:.3f}",
        )
    console = Console(width=max(110, Console().width))
    console.print(table)
    console.print(f"{result['seconds']:.0f} s")


def plot(result: Mapping[str, Any], path: Path) -> None:
    """F1 of the methods, and how right each source is in each domain: learned and true."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.add_subplot(1, 3, 1)
    names = list(result["methods"])
    scores = [100 * result["methods"][name]["f1"] for name in names]
    bars = axes.bar(names, scores, color=["tab:grey", "tab:orange", "tab:blue"])
    axes.bar_label(bars, [f"{score:.1f}" for score in scores], fontsize=8)
    axes.set_title("Entity F1 on unseen sentences", fontsize=9)
    axes.set_ylim(0, 100)
    for number, key in enumerate(("learned", "true"), start=2):
        matrix = np.array(result["reliability"][key])
        axes = figure.add_subplot(1, 3, number)
        axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
        axes.set_xticks(range(matrix.shape[1]), [f"domain {d}" for d in range(matrix.shape[1])])
        axes.set_yticks(range(len(matrix)), synthetic.SOURCES)
        axes.tick_params(labelsize=7)
        for (s, d), value in np.ndenumerate(matrix):
            colour = "white" if value > 0.6 else "black"
            axes.text(d, s, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        how = "learned by the CHMM" if key == "learned" else "counted with gold labels"
        axes.set_title(f"Sources: share right, {how}", fontsize=9)
    save_figure(figure, path)
