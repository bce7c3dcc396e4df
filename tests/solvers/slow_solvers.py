"""The papers' algorithms word by word, one column or one weight at a time, with explicit inverses."""

from __future__ import annotations

import itertools

import numpy as np


def layer(seed, rows, columns, samples=None, rectified=True):
    """Random weights, and second moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    samples = 2 * columns + 8 if samples is None else samples
    mix = np.eye(columns) + rng.standard_normal((columns, columns)) / np.sqrt(columns)
    x = rng.standard_normal((samples, columns)) @ mix
    x = np.maximum(x, 0) if rectified else x
    return rng.standard_normal((rows, columns)), x.T @ x / samples


def damped(hessian, share=0.01):
    return hessian + share * np.diag(hessian).mean() * np.eye(len(hessian))


def error(weight, new, hessian):
    return sum(float((w - n) @ hessian @ (w - n)) for w, n in zip(weight, new, strict=True))


def sparsegpt(weight, hessian, choose, block=128, share=0.01):
    """Algorithm 1 of the SparseGPT paper; `choose(scores, start, i)` is asked before every column i of a block."""
    w = weight.copy()
    rows, columns = w.shape
    upper = np.linalg.cholesky(np.linalg.inv(damped(hessian, share))).T
    mask = np.zeros((rows, columns), bool)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        for i in range(start, stop):
            chosen = choose(
                np.square(w[:, start:stop]) / np.square(np.diag(upper)[start:stop]), start, i - start
            )
            if chosen is not None:
                mask[:, i : i + chosen.shape[1]] = chosen
            err = np.where(mask[:, i], w[:, i], 0) / upper[i, i]
            for j in range(i, columns):
                w[:, j] -= err * upper[i, j]
            w[mask[:, i], i] = 0
    return w, mask


def no_worse(weight, new, mask, hessian, share=0.01):
    """Rows that lose less without updates are left as they were."""
    whole, masked = damped(hessian, share), np.where(mask, 0, weight)
    pairs = zip(weight, new, masked, strict=True)
    rows = [n if error([w], [n], whole) < error([w], [m], whole) else m for w, n, m in pairs]
    return np.array(rows)


def by_threshold(sparsity):
    """The whole block at once, the reference's quota."""

    def choose(scores, start, i):
        if i:
            return None
        quota = int(scores.size * sparsity)
        flat = np.zeros(scores.size, bool)
        flat[np.argsort(scores, axis=None, kind="stable")[:quota]] = True
        return flat.reshape(scores.shape)

    return choose


def by_groups(n, m):
    def choose(scores, start, i):
        if i % m:
            return None
        chosen = np.zeros((len(scores), m), bool)
        for row, values in zip(chosen, scores[:, i : i + m], strict=True):
            row[sorted(range(m), key=lambda k: values[k])[:n]] = True
        return chosen

    return choose


def by_mask(mask):
    return lambda scores, start, i: mask[:, start + i : start + i + 1]


def eliminate(weight, hessian, steps, width=1, share=0.01, allowed=lambda gone: ~gone):
    """One row by optimal brain surgery: the units that go and their costs, by an explicit inverse."""
    w = weight.copy()
    inverse = np.linalg.inv(damped(hessian, share))
    gone = np.zeros(len(weight) // width, bool)
    order, costs = [], []
    for _ in range(steps):
        best = None
        for unit in np.flatnonzero(allowed(gone)):
            p = np.arange(unit * width, (unit + 1) * width)
            cost = w[p] @ np.linalg.solve(inverse[np.ix_(p, p)], w[p])
            if best is None or cost < best[0]:
                best = (cost, unit, p)
        if best is None:
            break
        cost, unit, p = best
        solve = np.linalg.solve(inverse[np.ix_(p, p)], inverse[p])
        w = w - w[p] @ solve
        inverse = inverse - inverse[:, p] @ solve
        gone[unit] = True
        order.append(int(unit))
        costs.append(float(cost))
    return order, costs, w


def least_squares(weight, mask, hessian, share):
    """The best weights of each row, from the normal equations of a factor of the damped Hessian."""
    factor = np.linalg.cholesky(damped(hessian, share)).T
    new = np.zeros_like(weight)
    for row, (w, zero) in enumerate(zip(weight, mask, strict=True)):
        kept = np.flatnonzero(~zero)
        if len(kept):
            new[row, kept] = np.linalg.lstsq(factor[:, kept], factor @ w, rcond=None)[0]
    return new


def best_of_all(weight, hessian, zeros, share=0.01):
    """The least damped error of a row with so many zeros, over all masks."""
    costs = []
    for chosen in itertools.combinations(range(len(weight)), zeros):
        mask = np.zeros((1, len(weight)), bool)
        mask[0, list(chosen)] = True
        new = least_squares(weight[None], mask, hessian, share)
        costs.append(error(weight[None], new, damped(hessian, share)))
    return min(costs)
