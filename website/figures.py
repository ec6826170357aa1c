"""Draws the figures of the documentation: `python -m website.figures` writes docs/figures/*.svg."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from website.drawing import LINE, Drawing

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "figures"


Card = tuple[float, float, float, str, tuple[str, ...]]  # x, y, width, class, lines
Arrow = tuple[float, float, float, float]  # from x, y to x, y

COLUMN_TITLES = ((24, "Data owners"), (310, "Clients, one for each owner"), (654, "Server"))
PIECES: tuple[Card, ...] = (
    (24, 50, 226, "owner", ("Plain images, key ring", "They stay with the owner.")),
    (
        24,
        136,
        226,
        "owner",
        ("Encryption", "Blocks and pixels change", "places; some are inverted."),
    ),
    (24, 241, 226, "owner", ("Shard", "Ciphertext and labels in a", "sealed file")),
    (310, 50, 266, "client", ("Flower client app", "in a Ray worker or a SuperNode")),
    (
        310,
        136,
        266,
        "client",
        ("Local training", "LoRA, patch embedding and head;", "the rest is frozen."),
    ),
    (
        310,
        241,
        266,
        "client",
        ("Local images", "The storage key opens the shard;", "images stay encrypted."),
    ),
    (654, 50, 222, "server", ("Flower server app", "averages the clients' tensors")),
    (654, 136, 222, "server", ("Evaluation", "on encrypted test images, or", "by the clients")),
    (
        654,
        241,
        222,
        "server",
        ("Run folder", "model, rounds, bytes, report;", "audit: what leaks?"),
    ),
)
FLOW: tuple[Arrow, ...] = (
    (137, 105, 137, 134),
    (137, 211, 137, 239),
    (250, 278, 308, 278),
    (443, 241, 443, 213),
    (443, 136, 443, 107),
    (765, 105, 765, 134),
    (765, 211, 765, 239),
)
YOUR_FILES = (
    (24, 226, "owner", ("encryption step", "source of images")),
    (310, 266, "client", ("fine-tuning method, optimiser", "term of the loss, predictor, codec")),
    (654, 222, "server", ("aggregation strategy", "observer, attack")),
)


def architecture() -> Drawing:
    """Draws owners, clients and the server, what travels, and which files a user can write."""
    title = "Owners encrypt images, clients train, a server averages."
    d = Drawing(width=900, height=456, title=title)
    for column, words in COLUMN_TITLES:
        d.text(column, 34, words, kind="title")
    _cards(d, PIECES)
    for x, y, to_x, to_y in FLOW:
        d.arrow((x, y), (to_x, to_y))
    d.arrow((576, 77), (652, 77), both=True)
    d.text(614, 66, "bytes", kind="small quiet", anchor="middle")
    d.text(614, 97, "counted", kind="small quiet", anchor="middle")
    d.text(24, 352, "Each of these is one file that you can write yourself", kind="title")
    for column, width, kind, lines in YOUR_FILES:
        d.box(column, 368, width, 64, kind=kind)
        d.lines(column + 12, 394, lines)
    return d


def _cards(d: Drawing, cards: tuple[Card, ...]) -> None:
    """Draws cards."""
    for x, y, width, kind, lines in cards:
        d.card(x, y, width, lines, kind=kind)


LANES = (
    (24, 262, "server", "Server"),
    (320, 238, "plain", "Messages"),
    (592, 284, "client", "Clients"),
)
STEPS: tuple[Card, ...] = (
    (
        24,
        72,
        262,
        "server",
        ("1  Choose", "select: which clients take part", "plan: what they train"),
    ),
    (
        320,
        72,
        238,
        "plain",
        ("2  Send", "The downlink codec writes what", "the client does not have yet."),
    ),
    (
        592,
        72,
        284,
        "client",
        ("3  Train", "Steps on encrypted images, with the", "strategy's terms"),
    ),
    (592, 183, 284, "client", ("4  Report", "Delta = tensors after training", "minus before")),
    (320, 183, 238, "plain", ("5  Send back", "The uplink codec, or a mask for", "a secure sum")),
    (
        24,
        183,
        262,
        "server",
        ("6  Check", "An unusable update is refused.", "The client may be asked again."),
    ),
    (
        24,
        294,
        262,
        "server",
        ("7  Aggregate", "The strategy makes the next model", "and keeps its state."),
    ),
    (
        320,
        294,
        238,
        "plain",
        ("8  Evaluate", "The server measures, or each", "client does and is asked for it."),
    ),
    (
        592,
        294,
        284,
        "server",
        ("9  Record", "A line in rounds.jsonl, a checkpoint,", "or the end of the run"),
    ),
)
TURNS: tuple[Arrow, ...] = (
    (286, 108, 318, 108),
    (558, 108, 590, 108),
    (734, 147, 734, 181),
    (592, 219, 560, 219),
    (320, 219, 288, 219),
    (155, 258, 155, 292),
    (286, 330, 318, 330),
    (558, 330, 590, 330),
)
COUNTED = (
    "Every message of steps 2, 5 and 8 is counted as it is serialised, with headers, by client,",
    "direction and group of tensors (communication.csv). A repeated message counts twice.",
    "Full fine-tuning by the same clients in the same rounds is the reference for the saving.",
)


def one_round() -> Drawing:
    """Draws the steps of one round, from the choice of the clients to the checkpoint."""
    title = "The steps of one round at the server, on the wire and at a client."
    d = Drawing(width=900, height=540, title=title)
    for left, width, kind, words in LANES:
        d.box(left, 20, width, 34, kind=kind)
        d.text(left + width / 2, 43, words, kind="title", anchor="middle")
    _cards(d, STEPS)
    for x, y, to_x, to_y in TURNS:
        d.arrow((x, y), (to_x, to_y))
    d.arrow((734, 369), (734, 398), (10, 398), (10, 108), (22, 108), dashed=True)
    d.text(445, 391, "next round", kind="small quiet", anchor="middle")
    d.box(24, 418, 852, 104)
    d.text(36, 442, "What is counted", kind="title")
    d.lines(36, 465, COUNTED)
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
    "(1) Software at the client's side. It exists only if a client's key transforms tensors, for",
    "example with an aligned patch embedding.",
    "The server has ciphertext and labels of test images only, and only if it evaluates. In secure",
    "sums it has the sum of the updates instead of single updates.",
    "By computing, the worker and, in the default job, the server can also find the key.",
)


def keys() -> Drawing:
    """Draws who holds which key, as a table of dots."""
    d = Drawing(width=900, height=464, title="Which party holds which key, images and updates.")
    left, step = 300, 116
    for number, title in enumerate(COLUMNS):
        for row, word in enumerate(title):
            d.text(left + step * number + 46, 36 + LINE * row, word, kind="title", anchor="middle")
    for row, (party, kind, cells) in enumerate(PARTIES):
        y = 72 + 48 * row
        d.box(24, y, 852, 40, kind=kind)
        d.text(38, y + 25, party, kind="title")
        for number, cell in enumerate(cells):
            d.text(left + step * number + 46, y + 26, HAS[cell], anchor="middle")
    for x, words in (
        (24, "● has it"),
        (120, "○ has it with some settings only"),
        (372, "– does not have it"),
    ):
        d.text(x, 340, words, kind="small")
    d.lines(24, 366, NOTES, kind="small quiet")
    return d


ROWS = (  # y, title of the patch, pixels, title of the matrix, columns, token
    (
        50,
        ("A plain patch", ("x₁", "x₂", "x₃", "x₄")),
        ("Patch embedding E", ("e₁", "e₂", "e₃", "e₄")),
        ("Token", "x₁e₁ + x₂e₂ + x₃e₃ + x₄e₄"),
    ),
    (
        250,
        ("The same patch, encrypted", ("x₃", "−x₁", "x₄", "−x₂")),
        ("Adapted patch embedding T(E)", ("e₃", "−e₁", "e₄", "−e₂")),
        ("The same token", "x₃e₃ + (−x₁)(−e₁) + x₄e₄", "+ (−x₂)(−e₂)"),
    ),
)
WHY = (
    "Pixels are in [−1, 1], so an inverted pixel 255 − q is −x. If the key moves whole patches,",
    "the rows of the position embedding move with them. All layers behind it stay as they are.",
)


def key_adaptation() -> Drawing:
    """Draws a patch and its ciphertext, which give the same token with the matrices E and T(E)."""
    title = "A plain patch with E and a ciphertext with T(E) give the same token."
    d = Drawing(width=900, height=430, title=title)
    for y, patch, matrix, token in ROWS:
        _patch(d, y, *patch, kind="owner")
        _matrix(d, y, *matrix, kind="client")
        d.text(318, y + 61, "×", anchor="middle")
        d.text(664, y + 61, "=", anchor="middle")
        d.card(690, y + 24, 186, token, kind="server")
    d.arrow((104, 168), (104, 228))
    d.lines(118, 194, ("the key: pixels change places,", "some are inverted"))
    d.arrow((452, 168), (452, 228))
    d.lines(466, 194, ("the same key: columns change", "places, some change sign"))
    d.lines(24, 384, WHY)
    return d


def _patch(d: Drawing, y: float, title: str, values: Sequence[str], *, kind: str) -> None:
    """Draws a patch of four pixels."""
    d.text(24, y - 6, title, kind="title")
    for number, value in enumerate(values):
        x, top = 48 + 56 * (number % 2), y + 6 + 54 * (number // 2)
        d.box(x, top, 52, 50, kind=kind, round_=3)
        d.text(x + 26, top + 31, value, anchor="middle")


def _matrix(d: Drawing, y: float, title: str, columns: Sequence[str], *, kind: str) -> None:
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
