"""Draws the figures of the documentation: `python -m website.figures` writes docs/figures/*.svg."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from website.drawing import LINE, Drawing

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "figures"


def architecture() -> Drawing:
    """Draws owners, clients and the server, what goes between them, and what a user can replace."""
    d = Drawing(width=900, height=452, title="Owners encrypt images, clients train, a server averages.")
    d.text(24, 34, "Data owners", kind="title")
    d.text(310, 34, "Clients, one for each owner", kind="title")
    d.text(654, 34, "Server", kind="title")
    d.card(24, 50, 226, ["Plain images, key ring", "They stay with the owner."], kind="owner")
    d.arrow((137, 104), (137, 134))
    d.card(24, 136, 226, ["Encryption", "Blocks and pixels change places,", "some values are inverted."], kind="owner")
    d.arrow((137, 209), (137, 239))
    d.card(24, 241, 226, ["Shard", "Ciphertext and labels in a", "sealed file."], kind="owner")
    d.arrow((250, 278), (308, 278))
    d.card(310, 241, 266, ["Local images", "The storage key opens the shard;", "the images stay encrypted."], kind="client")
    d.arrow((443, 241), (443, 211))
    d.card(310, 136, 266, ["Local training", "LoRA, patch embedding and head;", "the rest of the model is frozen."], kind="client")
    d.arrow((443, 136), (443, 106))
    d.card(310, 50, 266, ["Flower client app", "in a Ray worker or a SuperNode"], kind="client")
    d.arrow((576, 77), (652, 77), both=True)
    d.text(614, 66, "bytes", kind="small quiet", anchor="middle")
    d.text(614, 96, "counted", kind="small quiet", anchor="middle")
    d.card(654, 50, 222, ["Flower server app", "averages the clients' tensors"], kind="server")
    d.arrow((765, 104), (765, 134))
    d.card(654, 136, 222, ["Evaluation", "on encrypted test images, or", "by the clients"], kind="server")
    d.arrow((765, 209), (765, 239))
    d.card(654, 241, 222, ["Run folder", "model, rounds, bytes, report;", "audit: what could be learnt?"], kind="server")
    d.text(24, 350, "Each of these is one file that you can write yourself", kind="title")
    rows = [
        (24, "owner", ["encryption step", "source of images"]),
        (310, "client", ["fine-tuning method, optimiser", "term of the loss, predictor, codec"]),
        (654, "server", ["aggregation strategy", "observer, attack"]),
    ]
    for x, kind, lines in rows:
        width = {24: 226, 310: 266, 654: 222}[x]
        d.box(x, 366, width, 62, kind=kind)
        for number, line in enumerate(lines):
            d.text(x + 12, 392 + LINE * number, line, kind="small")
    return d


def one_round() -> Drawing:
    """Draws the steps of one round, from the choice of the clients to the checkpoint."""
    d = Drawing(width=900, height=536, title="The steps of one round at the server, on the wire and at a client.")
    for x, width, kind, title in (
        (24, 262, "server", "Server"),
        (320, 238, "plain", "Messages"),
        (592, 284, "client", "Each client of the round"),
    ):
        d.box(x, 20, width, 34, kind=kind)
        d.text(x + width / 2, 42, title, kind="title", anchor="middle")
    d.card(24, 72, 262, ["1  Choose", "select: which clients take part", "plan: what they train"], kind="server")
    d.arrow((286, 108), (318, 108))
    d.card(320, 72, 238, ["2  Send", "The downlink codec writes what", "the client does not have yet."])
    d.arrow((558, 108), (590, 108))
    d.card(592, 72, 284, ["3  Train", "Steps on encrypted images, with the", "strategy's penalty and drift"], kind="client")
    d.arrow((734, 145), (734, 181))
    d.card(592, 183, 284, ["4  Report", "Delta = tensors after training", "minus before"], kind="client")
    d.arrow((592, 219), (560, 219))
    d.card(320, 183, 238, ["5  Send back", "The uplink codec, or a mask for", "a secure sum"])
    d.arrow((320, 219), (288, 219))
    d.card(24, 183, 262, ["6  Check", "An update with wrong shapes or NaN", "is refused and asked for again."], kind="server")
    d.arrow((155, 256), (155, 292))
    d.card(24, 294, 262, ["7  Aggregate", "The strategy makes the next model", "and keeps its own state."], kind="server")
    d.arrow((286, 330), (318, 330))
    d.card(320, 294, 238, ["8  Evaluate", "The server measures, or each", "client does and is asked for it."])
    d.arrow((558, 330), (590, 330))
    d.card(592, 294, 284, ["9  Record", "A line in rounds.jsonl, a checkpoint,", "should_stop: end the run?"], kind="server")
    d.arrow((734, 367), (734, 396), (10, 396), (10, 108), (22, 108), dashed=True)
    d.text(445, 388, "next round", kind="small quiet", anchor="middle")
    d.box(24, 416, 852, 100)
    d.text(36, 440, "What is counted", kind="title")
    for number, line in enumerate(
        (
            "Every message of steps 2, 5 and 8 is counted as it is serialised, with its headers, by client, direction",
            "and group of tensors (communication.csv). The bytes of a message that was asked for twice are counted",
            "twice. Full fine-tuning by the same clients in the same rounds is the reference for the saving.",
        )
    ):
        d.text(36, 462 + LINE * number, line, kind="small")
    return d


HAS = {"yes": "●", "some": "○", "no": "–"}
PARTIES = (
    ("Data owner", "owner", ("yes", "yes", "yes", "yes", "no")),
    ("Key holder of a client (1)", "client", ("no", "some", "no", "no", "no")),
    ("Worker that trains", "client", ("no", "no", "yes", "yes", "no")),
    ("Server", "server", ("no", "no", "some", "some", "yes")),
    ("Thief of a disk, without a key", "plain", ("no", "no", "no", "no", "no")),
)
COLUMNS = (
    ("plain", "images"),
    ("key of the", "images"),
    ("storage key", "of a shard"),
    ("ciphertext", "and labels"),
    ("updates of", "all clients"),
)
NOTES = (
    "●  has it     ○  has it with some settings only     –  does not have it",
    "(1) Software at the client's side. It exists only if a client's key transforms tensors (patch embedding aligned) or",
    "      if clients adapt or evaluate with keys of their own.",
    "The server has ciphertext and labels of the test images only, and only if it evaluates. In secure sums it has the sum",
    "of the updates instead of single updates.",
    "By computing, the worker and, in the default job, the server can also find the key: see What protects whom.",
)


def keys() -> Drawing:
    """Draws who holds which key, as a table of dots."""
    d = Drawing(width=900, height=452, title="Which party holds which key, images and updates.")
    left, step = 300, 116
    for number, words in enumerate(COLUMNS):
        for row, word in enumerate(words):
            d.text(left + step * number + 46, 36 + LINE * row, word, kind="title", anchor="middle")
    for row, (party, kind, cells) in enumerate(PARTIES):
        y = 72 + 48 * row
        d.box(24, y, 852, 40, kind=kind)
        d.text(38, y + 25, party, kind="title")
        for number, cell in enumerate(cells):
            d.text(left + step * number + 46, y + 26, HAS[cell], anchor="middle")
    for number, line in enumerate(NOTES):
        d.text(24, 338 + LINE * number, line, kind="small quiet" if number else "small")
    return d


def key_adaptation() -> Drawing:
    """Draws a patch and its ciphertext, which give the same token with the matrices E and T(E)."""
    d = Drawing(
        width=900, height=430, title="A plain patch with E and a ciphertext with T(E) give the same token."
    )
    plain = ("x₁", "x₂", "x₃", "x₄")
    cipher = ("x₃", "−x₁", "x₄", "−x₂")
    columns = ("e₁", "e₂", "e₃", "e₄")
    moved = ("e₃", "−e₁", "e₄", "−e₂")
    _patch(d, 50, "A plain patch", plain, "owner")
    _matrix(d, 50, "Patch embedding E", columns, "client")
    _patch(d, 250, "The same patch, encrypted", cipher, "owner")
    _matrix(d, 250, "Adapted patch embedding T(E)", moved, "client")
    d.arrow((104, 168), (104, 228))
    d.text(118, 194, "the key: pixels change places,", kind="small")
    d.text(118, 212, "some are inverted", kind="small")
    d.arrow((452, 168), (452, 228))
    d.text(466, 194, "the same key: columns change", kind="small")
    d.text(466, 212, "places, some change sign", kind="small")
    for y in (105, 305):
        d.text(318, y + 6, "×", anchor="middle")
        d.text(664, y + 6, "=", anchor="middle")
    d.card(690, 74, 186, ["Token", "x₁e₁ + x₂e₂ + x₃e₃ + x₄e₄"], kind="server")
    d.card(690, 274, 186, ["The same token", "x₃e₃ + (−x₁)(−e₁) + x₄e₄", "+ (−x₂)(−e₂)"], kind="server")
    d.text(24, 384, "Pixels are in [−1, 1], so an inverted pixel 255 − q is −x. If the key moves whole patches, the rows of the", kind="small")
    d.text(24, 384 + LINE, "position embedding move with them. All layers behind the tokens stay as they are.", kind="small")
    return d


def _patch(d: Drawing, y: float, title: str, values: tuple[str, ...], kind: str) -> None:
    """Draws a patch of four pixels."""
    d.text(24, y - 6, title, kind="title")
    for number, value in enumerate(values):
        x, top = 48 + 56 * (number % 2), y + 6 + 54 * (number // 2)
        d.box(x, top, 52, 50, kind=kind, round_=3)
        d.text(x + 26, top + 31, value, anchor="middle")


def _matrix(d: Drawing, y: float, title: str, columns: tuple[str, ...], kind: str) -> None:
    """Draws a matrix of four columns."""
    d.text(360, y - 6, title, kind="title")
    for number, column in enumerate(columns):
        x = 360 + 70 * number
        d.box(x, y + 6, 62, 104, kind=kind, round_=3)
        d.text(x + 31, y + 63, column, anchor="middle")


FIGURES: Mapping[str, Callable[[], Drawing]] = {
    "architecture": architecture,
    "round": one_round,
    "keys": keys,
    "key_adaptation": key_adaptation,
}


def main() -> None:
    """Writes all figures into docs/figures/."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
