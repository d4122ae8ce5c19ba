"""The same work in TensorFlow Recommenders, run by `bench_peers` in an environment of its own. Prints one JSON object.

TF_USE_LEGACY_KERAS=1 python tests/benchmarks/tfrs_step.py '{"rows": 1000000, "dim": 64, ...}'
"""

import json
import statistics
import sys
import time

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs


class ResidualTower(tf.keras.Model):
    """Features side by side -> a vector: their sum plus a mixed part, then a residual block, as ours."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.mix, self.norm = tf.keras.layers.Dense(dim), tf.keras.layers.LayerNormalization()
        self.up, self.down = tf.keras.layers.Dense(hidden, activation="gelu"), tf.keras.layers.Dense(dim)

    def call(self, features: list[tf.Tensor]) -> tf.Tensor:
        x = self.mix(tf.concat(features, axis=1)) + tf.add_n(features)
        return x + self.down(self.up(self.norm(x)))


class TwoTower(tfrs.Model):
    """Four tables, two towers, an anchor block, in-batch softmax by `tfrs.tasks.Retrieval`."""

    def __init__(self, rows: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.tables = {
            name: tf.keras.layers.Embedding(rows, dim) for name in ("query_id", "product_id", "words", "brand")
        }
        self.query, self.product = ResidualTower(dim, hidden), ResidualTower(dim, hidden)
        self.anchor = ResidualTower(dim, hidden)
        self.task = tfrs.tasks.Retrieval(temperature=0.07)

    def compute_loss(self, batch: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        def words(name: str) -> tf.Tensor:
            return tf.reduce_mean(self.tables["words"](batch[name]), axis=1)

        query = self.anchor([self.query([self.tables["query_id"](batch["query_id"]), words("query_words")])])
        product = self.product(
            [
                self.tables["product_id"](batch["product_id"]),
                words("product_words"),
                self.tables["brand"](batch["brand"]),
            ]
        )
        normalised = [tf.math.l2_normalize(x, axis=1) for x in (query, product)]
        return self.task(*normalised, compute_metrics=False)


def main() -> None:
    settings = json.loads(sys.argv[1])
    rows, steps, stored = settings["rows"], settings["steps"], dict(np.load(settings["batches"]))
    ready = [{name: tf.constant(ids[step]) for name, ids in stored.items()} for step in range(steps)]
    tf.random.set_seed(0)
    model = TwoTower(rows, settings["dim"], settings["hidden"])
    model.compile(optimizer=tf.keras.optimizers.Adagrad(0.05))
    train = tf.function(model.train_step)
    for batch in ready[:3]:
        train(batch)
    seconds = []
    for _ in range(settings["rounds"]):
        start = time.perf_counter()
        for batch in ready:
            loss = train(batch)["loss"].numpy()
        seconds.append((time.perf_counter() - start) / steps)
    assert np.isfinite(loss)
    print(json.dumps({"seconds": statistics.median(seconds), "tensorflow": tf.__version__}))


if __name__ == "__main__":
    main()
