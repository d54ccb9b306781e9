"""Which tensor makes a layer wrong: the source's takes its place, one tensor after another, and the layer runs again.

This is the evidence of a run, beside the comparison of the weights themselves: it also finds what is wrong with how
the weights are used, and says how much a difference matters.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from phi4conv.reference.file_hyperparameters import PHI3
from phi4conv.reference.parts import Model, Part
from phi4conv.reference.run import Runner, RunSettings
from phi4conv.reference.side_by_side import LayerErrors, Passage, own_error, run_layer_on
from phi4conv.verify.hyperparameters import differences

# Wrong layers that are looked into: every trial reads the layer again, and a fault of all layers shows in the first.
MOST_BLAMED = 3

# Tokens that a trial runs; a wrong tensor shows in all of them.
TRIAL_TOKENS = 256

# An error that is at most so many times the smallest one is as good: fewer tensors count more.
SIMILAR = 1.5

# A name for the hyperparameters among the tensors that a trial exchanges.
METADATA = "metadata"


@dataclass(frozen=True)
class Blamed:
    """A layer whose own error is beyond what its tensors' types explain.

    Attributes:
        index: Which layer.
        error: Its own error, relative.
        explained: The most that its types explain.
        trials: What was taken from the source (tensors of the file, or METADATA), and the error that is then left.
    """

    index: int
    error: float
    explained: float
    trials: Mapping[tuple[str, ...], float]

    @property
    def culprits(self) -> tuple[str, ...]:
        """What has to come from the source for the error to be smallest, or nearly so; the fewest things."""
        enough = SIMILAR * min(self.trials.values())
        return min((names for names, error in self.trials.items() if error <= enough), key=len)


class LayerBlame:
    """Looks into layers as they run; give `after_layer` to compare_runs."""

    def __init__(
        self,
        source: Model,
        file: Model,
        passages: Sequence[Passage],
        settings: RunSettings,
        *,
        explained: Mapping[int, float],
        suspects: Collection[str],
    ) -> None:
        """Both collections may grow while layers run.

        Args:
            source: The source's side.
            file: The file's.
            passages: What is run; the trials take the beginning.
            settings: How.
            explained: For each layer the most that the types of its tensors account for.
            suspects: Tensors that do not hold the source's weights.
        """
        self.source, self.file, self.settings = source, file, settings
        self.explained, self.suspects = explained, suspects
        self.passages = first_passages(passages)
        self.wrong: list[int] = []
        self.blamed: list[Blamed] = []

    def after_layer(self, before: Tensor, expected: Tensor, errors: LayerErrors) -> None:
        """Note a layer that is wrong, and for the first ones find out why; both states are the source's."""
        index, error = errors.index, errors.own.relative
        if error <= self.explained[index]:
            return
        self.wrong.append(index)
        if len(self.blamed) == MOST_BLAMED:
            return
        count = sum(len(passage.ids) for passage in self.passages)
        trials = {
            names: self._error_of(model, index, before[:count], expected[:count])
            for names, model in self._exchanged(index).items()
        }
        self.blamed.append(Blamed(index, error, self.explained[index], trials))

    def _exchanged(self, index: int) -> dict[tuple[str, ...], Model]:
        """The file's model with one tensor of the source's at a time, with all suspects, with the metadata."""
        tensors = dict.fromkeys(part.tensor for part in self.file.layer(index).values())
        wrong = tuple(tensor for tensor in tensors if tensor in self.suspects)
        models = {names: self._with(index, names) for names in [*((tensor,) for tensor in tensors), wrong] if names}
        if any(differences(self.file.hyperparameters, self.source.hyperparameters, PHI3)):
            # By themselves, and with all that is wrong besides.
            for names in dict.fromkeys([(), wrong]):
                exchanged = (METADATA, *names)
                models[exchanged] = replace(self._with(index, names), hyperparameters=self.source.hyperparameters)
        return models

    def _with(self, index: int, tensors: Collection[str]) -> Model:
        right = self.source.layer(index)
        return with_parts(
            self.file, [right[name] for name, part in self.file.layer(index).items() if part.tensor in tensors]
        )

    def _error_of(self, model: Model, index: int, before: Tensor, expected: Tensor) -> float:
        found = run_layer_on(Runner(model, self.settings), index, before, self.passages)
        error = own_error(before, expected, found).relative
        return math.inf if math.isnan(error) else error


def with_parts(model: Model, parts: Sequence[Part]) -> Model:
    """The model with other parts of the same names."""
    return replace(model, parts={**model.parts, **{part.name: part for part in parts}})


def first_passages(passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """The first passages, cut after TRIAL_TOKENS tokens in all."""
    kept, room = [], TRIAL_TOKENS
    for passage in passages:
        if room:
            kept.append(replace(passage, ids=passage.ids[:room]))
            room -= len(kept[-1].ids)
            if len(kept[-1].ids) < len(passage.ids):
                break
    return tuple(kept)
