"""Scores made into probabilities: for each rank a map from score to the share of labels that are true.

The same score means more at rank 1 than at rank 5, so each of the first 20 ranks has a map of its own, fitted on texts
that did not train the model; deeper ranks share the last. Maps are plain numbers on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from .errors import RunError

METHODS = ("platt", "isotonic")
RANKS = 20
FILE = "calibration.json"

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Isotonic(BaseModel):
    """A rising line through (score, probability) points, level outside: isotonic regression."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scores: tuple[FiniteFloat, ...] = Field(min_length=1)
    probabilities: tuple[_Share, ...]

    @model_validator(mode="after")
    def _is_rising(self) -> Isotonic:
        if len(self.scores) != len(self.probabilities):
            raise ValueError("as many scores as probabilities are needed")
        if np.any(np.diff(self.scores) < 0) or np.any(np.diff(self.probabilities) < 0):
            raise ValueError("scores and probabilities must rise")
        return self

    @classmethod
    def fit(cls, scores: np.ndarray, hits: np.ndarray) -> Isotonic:
        """scores (n,) float64 and whether each label is true, (n,) bool."""
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(y_min=0, y_max=1).fit(scores, hits)
        return cls(scores=tuple(fitted.X_thresholds_.tolist()), probabilities=tuple(fitted.y_thresholds_.tolist()))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return np.interp(scores, self.scores, self.probabilities)


class Platt(BaseModel):
    """sigmoid(slope x logit(score) + intercept)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    slope: FiniteFloat
    intercept: FiniteFloat

    @classmethod
    def fit(cls, scores: np.ndarray, hits: np.ndarray) -> Platt:
        """scores (n,) float64 and whether each label is true, (n,) bool.

        Targets are not 0 and 1 but those of Platt (1999), as if one more text of each kind had been seen: the fit is
        finite where all labels are true, or none.
        """
        from sklearn.linear_model import LogisticRegression

        true = hits.sum()
        target = np.where(hits, (true + 1) / (true + 2), 1 / (len(hits) - true + 2))
        twice, both = np.tile(_logit(scores), 2)[:, None], np.repeat([1, 0], len(hits))
        fitted = LogisticRegression(C=1e6).fit(twice, both, np.concatenate([target, 1 - target]))
        if fitted.coef_.item() < 0:  # few texts, and noise: no higher score shall mean a lower probability
            return cls(slope=0, intercept=_logit(target.mean()).item())
        return cls(slope=fitted.coef_.item(), intercept=fitted.intercept_.item())

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        probabilities: np.ndarray = expit(self.slope * _logit(scores) + self.intercept)
        return probabilities


class Calibration(BaseModel):
    """maps: one for each rank, the last for all deeper ones. figures: how well it did where it was fitted."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal[1] = 1
    method: Literal["platt", "isotonic"]
    maps: tuple[Isotonic | Platt, ...] = Field(min_length=1)
    figures: dict[str, Any] = {}

    @classmethod
    def fit(cls, method: Literal["platt", "isotonic"], scores: np.ndarray, hits: np.ndarray) -> Calibration:
        """scores (N,K) of the labels at each rank, and whether they are true, (N,K) bool. A score of 0 is none."""
        kind = Isotonic if method == "isotonic" else Platt
        exact = scores[:, :RANKS].astype(np.float64)
        ranked = [(column[column > 0], hit[column > 0]) for column, hit in zip(exact.T, hits.T)]
        # Lists may end early; the ranks that no text has are the last ones.
        return cls(method=method, maps=tuple(kind.fit(column, hit) for column, hit in ranked if len(column)))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities (N,K) float32 for scores (N,K), whose order stays; a score of 0 stays 0.

        Where the map of a rank would give more than the rank before has, it gets as much: lists stay best first. On
        the corpora tried, that made the Brier score better or left it as it was.
        """
        exact = scores.astype(np.float64)
        last = min(len(self.maps), scores.shape[1]) - 1
        for rank, to_probability in enumerate(self.maps[:last]):
            exact[:, rank] = to_probability(exact[:, rank])
        exact[:, last:] = self.maps[last](exact[:, last:])
        return np.where(scores > 0, np.minimum.accumulate(exact, axis=1), 0).astype(np.float32)


def read_calibration(run: Path) -> Calibration | None:
    """That of a run; None where it has none. Raises RunError for a damaged file."""
    path = run / FILE
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise RunError(f"{path} is damaged ({reason}); calibrate again, or remove it for plain scores") from error


def _logit(scores: np.ndarray) -> np.ndarray:
    # A float32 comes no closer to 1 than this, and 0 has no logit.
    inside = np.clip(scores, 1e-7, 1 - 1e-7)
    logits: np.ndarray = np.log(inside / (1 - inside))
    return logits
