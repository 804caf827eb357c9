"""One training example, three rewards, unseen problems before and after: RLVR on a small scale.

`oneshot demo` (or `make demo`) trains the embedded model by GRPO on ONE arithmetic problem, three
times from the same start: rewarded for the right answer, for any boxed answer, and at random. The
last two are the controls that say what the first one adds. Every arm is an ordinary run of
`oneshot.rlvr.trainer` in its own folder: config, metrics, samples, checkpoint, curves.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneshot import policy_presets
from oneshot.embedded import problems
from oneshot.rlvr.config import (
    AlgorithmConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)
from oneshot.rlvr.studies.summary import SATURATED, summarize

# Name of an arm -> reward function of the trainer.
ARMS = {"outcome": "math_verify", "format": "format", "random": "random"}
COLOURS = {"outcome": "tab:blue", "format": "tab:orange", "random": "tab:grey"}
UNSEEN_SEED = 2026
PROMPTS, SAMPLES = 4, 8  # copies of the example in a batch, and the size of a group


def training_problem(seed: int) -> problems.ArithmeticProblem:
    """The single example: a sum of three-digit numbers that carries in both lower columns.

    The guesses of the model, which forget carries, are never right on it, so memorising a lucky
    guess is no way to the reward.

    Args:
        seed: Each seed gives another example.

    Returns:
        A problem whose calculation is neither in the pre-training text nor among the unseen ones.
    """
    rng = random.Random(seed)
    while True:
        problem = problems.sample_problem(rng, "train", ("add",))
        values = [int(column.split("=")[1]) for column in problems.columns_of(problem)]
        if len(values) == 3 and values[0] > 9 and values[1] > 9:
            return problem


def arm_config(
    arm: str, folder: Path, *, seed: int, steps: int, evaluate_every: int, progress: bool
) -> TrainConfig:
    """The run of one arm; arms differ in the reward alone.

    Args:
        arm: A name in `ARMS`.
        folder: Holds train.jsonl and unseen.jsonl; the run goes into its subfolder `arm`.
        seed: Seed of the run.
        steps: Rollout steps, one optimizer step each.
        evaluate_every: Steps between evaluations on the unseen problems.
        progress: Show the trainer's progress bar.

    Returns:
        The config.
    """
    return TrainConfig(
        model=ModelConfig(source="embedded"),
        data=DataConfig(path=str(folder / "train.jsonl")),
        rollout=RolloutConfig(
            batch_size=PROMPTS, samples_per_prompt=SAMPLES, temperature=1.0, max_new_tokens=64
        ),
        reward=RewardConfig(function=ARMS[arm]),
        algorithm=AlgorithmConfig(loss=policy_presets.paper(kl_loss_coef=0.2)),
        optimizer=OptimizerConfig(lr=1e-4),
        evaluation=EvaluationConfig(
            path=str(folder / "unseen.jsonl"), every=evaluate_every, batch_size=256
        ),
        run=RunConfig(
            output=str(folder / arm), steps=steps, seed=seed, save_every=steps, progress=progress
        ),
    )


def run_demo(
    seed: int = 0,
    *,
    output: str | Path | None = None,
    steps: int = 64,
    unseen: int = 256,
    evaluate_every: int = 8,
    arms: Sequence[str] = tuple(ARMS),
    progress: bool = True,
) -> dict[str, Any]:
    """Trains every arm and compares them on unseen problems.

    Args:
        seed: Chooses the training example and seeds the runs; the unseen problems stay the same.
        output: A new folder for everything that is written; by default runs/demo-<date>-<time>.
        steps: Rollout steps per arm.
        unseen: Number of unseen problems.
        evaluate_every: Steps between evaluations.
        arms: Which of `ARMS` to run.
        progress: Show a progress bar per arm.

    Returns:
        The metrics, as also written to demo.json beside demo.png: the example, and for each arm
        accuracy before and after with Wilson 95 % intervals, peak, saturation and curve.

    Raises:
        FileExistsError: `output` exists.
        ValueError: An unknown arm.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not arms:
        raise ValueError(f"arms: expected some of {tuple(ARMS)}, got {tuple(arms)!r}")
    from oneshot.rlvr.trainer import train

    start = time.perf_counter()
    folder = Path(output or time.strftime("runs/demo-%Y%m%d-%H%M%S"))
    folder.mkdir(parents=True)
    example = training_problem(seed)
    write_rows(folder / "train.jsonl", [example])
    write_rows(folder / "unseen.jsonl", problems.sample_problems(unseen, "test", UNSEEN_SEED))
    result: dict[str, Any] = {
        "seed": seed,
        "steps": steps,
        "unseen_problems": unseen,
        "training_example": example.as_row(),
        "output": str(folder),
        "arms": {},
    }
    for number, arm in enumerate(arms, start=1):
        if progress:
            print(f"[{number}/{len(arms)}] {arm} reward on {example.text!r}", flush=True)
        arm_start = time.perf_counter()
        run = train(
            arm_config(
                arm,
                folder,
                seed=seed,
                steps=steps,
                evaluate_every=evaluate_every,
                progress=progress,
            )
        )
        metrics = summarize(run.history)
        metrics["worked_before"] = worked_share(run.output / "validation" / "step_000000.jsonl")
        metrics["worked_after"] = worked_share(
            run.output / "validation" / f"step_{steps:06d}.jsonl"
        )
        metrics["seconds"] = round(time.perf_counter() - arm_start, 1)
        result["arms"][arm] = metrics
    result["seconds"] = round(time.perf_counter() - start, 1)
    plot_arms(result, folder / "demo.png")
    (folder / "demo.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def write_rows(path: Path, rows: Sequence[problems.ArithmeticProblem]) -> None:
    """Writes problems as the trainer's JSONL."""
    path.write_text("".join(json.dumps(row.as_row()) + "\n" for row in rows), encoding="utf-8")


def worked_share(path: Path) -> float:
    """Share of worked answers among the responses of one evaluation."""
    lines = path.read_text(encoding="utf-8").splitlines()
    styles = [problems.style_of(json.loads(line)["responses"][0]) for line in lines]
    return styles.count("work") / len(styles)


def print_table(result: dict[str, Any]) -> None:
    """Prints the comparison of the arms."""
    from rich.console import Console
    from rich.table import Table

    example = result["training_example"]
    table = Table(
        title=f"One training example: {example['problem']}  (answer {example['answer']})\n"
        f"greedy accuracy on {result['unseen_problems']} unseen problems"
    )
    for name in ("reward", "before", "after", "95 % interval", "change", "peak (step)"):
        table.add_column(name, justify="left" if name == "reward" else "right", no_wrap=True)
    for name in ("boxed", "worked", "train reward", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm, row in result["arms"].items():
        low, high = row["interval_after"]
        table.add_row(
            arm,
            f"{row['accuracy_before']:.1%}",
            f"{row['accuracy_after']:.1%}",
            f"{low:.1%} - {high:.1%}",
            f"{100 * (row['accuracy_after'] - row['accuracy_before']):+.1f}",
            f"{row['accuracy_peak']:.1%} ({row['peak_step']})",
            f"{row['boxed_before']:.0%} > {row['boxed_after']:.0%}",
            f"{row['worked_before']:.0%} > {row['worked_after']:.0%}",
            f"{row['reward_start']:.2f} > {row['reward_end']:.2f}",
            f"{row['seconds']:.0f}",
        )
    console = Console(width=max(120, Console().width))
    console.print(table)
    outcome = result["arms"].get("outcome")
    if outcome and outcome["saturated_step"] is not None:
        console.print(
            f"Training reward saturated ({SATURATED:.0%}) at step {outcome['saturated_step']}; "
            f"unseen accuracy was {outcome['accuracy_at_saturation']:.1%} at the next evaluation "
            f"and {outcome['accuracy_after']:.1%} at the end."
        )
    console.print(f"{result['seconds']:.0f} s in all; runs are in {result['output']}")


def plot_arms(result: dict[str, Any], path: Path) -> None:
    """Draws reward, entropy and unseen accuracy of every arm over the steps, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = (
        ("reward", "Training reward"),
        ("entropy", "Entropy, nats per token"),
        ("unseen_accuracy", f"Accuracy on {result['unseen_problems']} unseen problems (greedy)"),
    )
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (key, title) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for arm, row in result["arms"].items():
            points = [(p["step"], p[key]) for p in row["curve"] if p[key] is not None]
            marker = "o" if key == "unseen_accuracy" else None
            axes.plot(
                *zip(*points, strict=True),
                marker=marker,
                markersize=3,
                color=COLOURS[arm],
                label=f"{arm} reward",
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"step ({PROMPTS * SAMPLES} responses, one update)")
        axes.set_ylim(bottom=0, top=None if key == "entropy" else 1.02)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(f"GRPO on one example: {result['training_example']['problem']}", fontsize=11)
    figure.savefig(path, dpi=120)
