"""Images by Ceph's own library, for tests: one request a line on standard input, as JSON, one answer a line.

A request names an operation and what it needs; see `librbd.rs`, which sends them. Each opens the image it is about, and closes it
again, so that whoever asks may hand the image to somebody else in between; unless the image is kept open, from one that opens it to
one that closes it.
"""
import json
import sys

import rados
import rbd


def connect(conf):
    cluster = rados.Rados(conffile=conf, conf={
        "rbd_discard_granularity_bytes": "4096",
        "rbd_skip_partial_discard": "false",
        "rbd_default_clone_format": "2",
    })
    cluster.connect()
    return cluster


def copy(image, path):
    size, at = image.size(), 0
    with open(path, "wb") as file:
        while at < size:
            step = min(4 << 20, size - at)
            file.write(image.read(at, step))
            at += step


def serve(pool, kept, ask):
    op, name = ask["op"], ask["image"]
    if op == "open":
        kept[name] = rbd.Image(pool, name)
        return {}
    if op == "close":
        kept.pop(name).close()
        return {}
    if op == "create":
        order = ask["order"]
        striping = {}
        if ask["stripe_count"] > 1:
            striping = {"stripe_unit": ask["stripe_unit"], "stripe_count": ask["stripe_count"]}
        rbd.RBD().create(pool, name, ask["size"], order=order, features=61, **striping)
        return {}
    if op == "clone":
        rbd.RBD().clone(pool, ask["parent"], ask["snapshot"], pool, name)
        return {}
    if op == "remove":
        rbd.RBD().remove(pool, name)
        return {}
    if name in kept and not ask.get("snapshot"):
        change(kept[name], op, ask)
        return {}
    with rbd.Image(pool, name, snapshot=ask.get("snapshot"), read_only=op == "read") as image:
        change(image, op, ask)
    return {}


def change(image, op, ask):
    if op == "read":
        copy(image, ask["to"])
    elif op == "write":
        image.write(bytes([ask["byte"]]) * ask["length"], ask["offset"])
    elif op == "discard":
        image.discard(ask["offset"], ask["length"])
    elif op == "zero":
        image.write_zeroes(ask["offset"], ask["length"])
    elif op == "resize":
        image.resize(ask["size"])
    elif op == "keep":
        image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
    elif op == "flatten":
        image.flatten()
    elif op == "snap_create":
        image.create_snap(ask["name"])
    elif op == "snap_remove":
        image.remove_snap(ask["name"])
    else:
        raise ValueError("no operation " + op)


def main():
    cluster = connect(sys.argv[1])
    pool = cluster.open_ioctx(sys.argv[2])
    pool.set_namespace(sys.argv[3])
    kept = {}
    for line in sys.stdin:
        try:
            answer = serve(pool, kept, json.loads(line))
        except Exception as error:  # whatever it is, the test says what it asked for
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


main()
