"""Measure how many bytes a run sends with different codecs, and what they cost in accuracy.

    python codec_bytes.py

Look at the bytes of one message first: the tensors shrink as the codec says, but the bytes that
Flower and the message format add stay the same. Then look at the accuracy beside the megabytes of
the whole run. All bytes are counted from the messages that were really sent.
"""

import fl_vitlora as fv

CODECS = ("float32", "int8", "int4", "ecsq(1.4)", "topk(0.1)+sign")


def both_ways(codec: str) -> dict[str, str]:
    """Returns the settings that compress all tensors in both directions."""
    return {"compression.uplink": codec, "compression.downlink": codec}


if __name__ == "__main__":
    found = fv.compare(
        {
            "compare": {"codec": {codec: both_ways(codec) for codec in CODECS}},
            "clients": 8,
            "rounds": 5,
        }
    )
    print("codec             bytes of an update    accuracy    megabytes sent    saving")
    for row in found.rows:
        codec = str(row["codec"])
        last = found.find(codec).history[-1]
        update = last["uplink_bytes"] / len(last["participants"])
        sent, accuracy = row["sent_bytes"] / 1e6, row["accuracy_percent"]
        print(f"{codec:<16}{update:>18,.0f}{accuracy:>12.1f}{sent:>16.2f}{row['saving']:>10.1f}x")
    print(f"plots of accuracy over megabytes: {found.folder}/plots")
