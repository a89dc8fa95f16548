"""scikit-learn, XGBoost and LightGBM: rows of numbers in, one prediction each."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nanopod.node.engines.serving.formats import flag, number
from nanopod.node.engines.serving.predictors import OUTPUT, Locked, Tabular
from nanopod.node.engines.serving.tensors import NAMES, Facts


class Sklearn(Tabular):
    """Anything with `predict`; `predict_proba` when the option (or PREDICT_PROBA) says so."""

    def __init__(self, model: Any, *, probabilities: bool) -> None:
        names = [str(name) for name in getattr(model, "feature_names_in_", ())]
        super().__init__("sklearn", int(getattr(model, "n_features_in_", 0)), names)
        self._call = model.predict_proba if probabilities else model.predict
        classes = getattr(model, "classes_", None)
        if probabilities:
            self.outputs = (Facts(OUTPUT, "FP64", (-1, len(classes) if classes is not None else -1)),)
        elif isinstance(classes, np.ndarray):
            self.outputs = (Facts(OUTPUT, NAMES.get(classes.dtype.newbyteorder("<").str, "BYTES"), (-1,)),)

    def predict(self, matrix: Any) -> Any:
        """By scikit-learn, whose fitted models are safe in threads."""
        return self._call(matrix)


def load_sklearn(path: Path, options: Mapping[str, str]) -> Sklearn:
    """A joblib file or a pickle. It runs code, as every pickle does: load only what you trust."""
    import joblib

    if path.suffix == ".joblib":
        model = joblib.load(path)
    else:
        with path.open("rb") as file:
            try:
                model = pickle.load(file)
            except pickle.UnpicklingError:
                model = joblib.load(path)
    if not hasattr(model, "predict"):
        raise ValueError(f"it holds {type(model).__name__}, which has no predict()")
    asked = flag(options, "predictproba") or os.environ.get("PREDICT_PROBA", "").lower() == "true"
    return Sklearn(model, probabilities=asked)


class Xgboost(Tabular):
    """An XGBoost booster."""

    def __init__(self, booster: Any, threads: int) -> None:
        super().__init__("xgboost", int(booster.num_features()), booster.feature_names or ())
        self._booster = booster
        self._threads = threads
        self._names = tuple(booster.feature_names or ())

    def predict(self, matrix: Any) -> Any:
        """Boosters are safe for prediction in threads."""
        import xgboost

        names = list(self._names) or None
        data = xgboost.DMatrix(np.asarray(matrix, dtype=np.float32), nthread=self._threads, feature_names=names)
        return self._booster.predict(data)


def load_xgboost(path: Path, options: Mapping[str, str]) -> Xgboost:
    """Any file that XGBoost itself writes. The option `nthread` is the threads of one prediction (1)."""
    import xgboost

    threads = number(options, "nthread", 1)
    booster = xgboost.Booster({"nthread": threads})
    booster.load_model(str(path))
    return Xgboost(booster, threads)


class Lightgbm(Tabular):
    """A LightGBM booster."""

    def __init__(self, booster: Any, threads: int) -> None:
        super().__init__("lightgbm", int(booster.num_feature()), [str(name) for name in booster.feature_name()])
        self._booster = booster
        self._threads = threads
        self._lock = Locked()

    def predict(self, matrix: Any) -> Any:
        """One at a time: a booster keeps buffers between predictions."""
        with self._lock:
            return self._booster.predict(np.asarray(matrix, dtype=np.float64), num_threads=self._threads)


def load_lightgbm(path: Path, options: Mapping[str, str]) -> Lightgbm:
    """A text model as LightGBM saves it. The option `nthread` is the threads of one prediction (1)."""
    import lightgbm

    return Lightgbm(lightgbm.Booster(model_file=str(path)), number(options, "nthread", 1))
