"""TFRS's BruteForce layer, run by `bench_peers` in an environment of its own. Prints one JSON object.

TF_USE_LEGACY_KERAS=1 python tests/benchmarks/tfrs_topk.py '{"vectors": "vectors.npz", "k": 100, "rounds": 5}'
"""

import json
import statistics
import sys
import time

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs


def main() -> None:
    settings = json.loads(sys.argv[1])
    stored = np.load(settings["vectors"])
    anchors = tf.constant(stored["anchors"])
    index = tfrs.layers.factorized_top_k.BruteForce(k=settings["k"]).index(tf.constant(stored["candidates"]))
    ask = tf.function(index)
    ask(anchors)
    seconds = []
    for _ in range(settings["rounds"]):
        start = time.perf_counter()
        rows_BK = ask(anchors)[1].numpy()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": statistics.median(seconds), "first_rows": rows_BK[:, 0].tolist()}))


if __name__ == "__main__":
    main()
