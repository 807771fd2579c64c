"""What is fitted on frozen features: nearest neighbours, ridge regression, logistic regression.

The benchmarks and the forgetting panel share them. N images to fit on, T to test, D features, K classes; features are
(N, D) and (T, D), answers (T, K).

kNN: cosine similarity, votes weighted by exp(similarity / 0.07) (Caron et al. 2021, DINO, section 4.1).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]  # features, of either precision
Answers = NDArray[np.float64]
Labels = NDArray[np.int64]
TEMPERATURE = 0.07


def knn(train: Floats, labels: Labels, test: Floats, classes: int, neighbours: int) -> Answers:
    """(T, K) shares of the neighbours' weighted votes."""
    near = _unit(test) @ _unit(train).T  # (T, N)
    count = min(neighbours, len(labels))
    top = np.argpartition(-near, count - 1, axis=1)[:, :count]
    weights = np.exp((np.take_along_axis(near, top, axis=1) - 1) / TEMPERATURE)
    votes = np.stack([(weights * (labels[top] == k)).sum(axis=1) for k in range(classes)], axis=1)
    total = votes.sum(axis=1, keepdims=True)
    shares: Answers = np.where(total > 0, votes / np.maximum(total, 1e-300), 1 / classes)
    return shares


def logistic(train: Floats, labels: Labels, test: Floats, classes: int, c: float) -> Answers:
    """(T, K) probabilities of multinomial logistic regression; a class without training images gets 0."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    probabilities = np.zeros((len(test), classes))
    present = np.unique(labels)
    if len(present) == 1:
        probabilities[:, present[0]] = 1.0
        return probabilities
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # C is chosen by folds either way
        model = LogisticRegression(C=c / train.shape[1], max_iter=300).fit((train - mean) / spread, labels)
    probabilities[:, model.classes_] = model.predict_proba((test - mean) / spread)
    return probabilities


def ridge(train: Floats, labels: Labels, test: Floats, classes: int, penalty: float = 1.0) -> Floats:
    """(T, K) answers of class-balanced ridge regression on one-hot targets: closed form, hence exact and quick.

    `penalty` is a share of N: features should be standardised.
    """
    targets = np.eye(classes)[labels]
    present = np.maximum(targets.sum(axis=0), 1)
    weights = (1 / present)[labels][:, None] * len(labels) / classes
    centre = (weights * targets).sum(axis=0) / weights.sum()
    left = train.T @ (weights * train) + penalty * len(train) * np.eye(train.shape[1])
    solution = np.linalg.solve(left, train.T @ (weights * (targets - centre)))
    answers: Floats = test @ solution + centre
    return answers


def standardised(x: Floats, fit: Floats) -> Floats:
    """`x` with the mean and spread of `fit` taken out of every feature."""
    standard: Floats = (x - fit.mean(axis=0)) / np.maximum(fit.std(axis=0), 1e-6)
    return standard


def balanced_accuracy(predicted: Labels, truth: Labels) -> float:
    """Mean recall over the classes that occur."""
    return float(np.mean([(predicted[truth == k] == k).mean() for k in np.unique(truth)]))


def _unit(x: Floats) -> Floats:
    unit: Floats = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit
