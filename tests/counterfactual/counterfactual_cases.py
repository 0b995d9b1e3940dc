"""A made-up credit table of mixed kinds, the same for a seed: what tests of tables are asked of."""

import numpy as np
import pandas as pd

from robustx.counterfactual import FeatureSchema, Linear

JOBS, SCHOOLS = ("none", "part", "full", "own"), ("primary", "secondary", "bachelor", "master")


def credit(count=60, seed=0):
    draw = np.random.default_rng(seed)
    age = draw.integers(19, 80, count)
    return pd.DataFrame(
        {
            "age": age,
            "worked": (age - 18 - draw.integers(0, 10, count)).clip(0),
            "income": draw.lognormal(10, 0.5, count).round(2),
            "rate": (draw.random(count) * 20).round(1),
            "loan": draw.integers(1, 40, count) * 500.0,
            "school": draw.choice(SCHOOLS, count),
            "job": draw.choice(JOBS, count),
            "home": draw.choice(("owned", "rented"), count),
            "sex": draw.choice(("f", "m"), count),
        }
    )


def credit_schema(frame, **more):
    told = FeatureSchema.from_dataframe(
        frame,
        ordinal={"school": SCHOOLS},
        immutable=["sex"],
        increasing=["age", "worked", "school"],
        ranges={"age": (18, 99), "worked": (0, 70), "income": (0, 2e5), "rate": (0, 20), "loan": (500, 20000)},
        max_changes={"age": 5, "income": 20000, "school": 1},
        steps={"rate": 0.1, "loan": 500},
        units={"income": "EUR", "age": "years"},
        transitions={"job": {"own": ["own", "full"]}},
        **more,
    )
    return told.add_constraint(Linear({"age": 1, "worked": -1}, ">=", 18)).add_constraint(
        Linear({"loan": 1, "income": -1}, "<=", 15000)
    )
