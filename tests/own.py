"""People's own pictures, and the file of their captions."""

import json

from PIL import Image

COLOURS = ("red", "green", "blue", "white", "black")


def own(folder, count=25, splits=None, captions=2):
    """Pictures of one colour, and what is said of them."""
    (folder / "photos").mkdir(exist_ok=True)
    records = []
    for k in range(count):
        colour = COLOURS[k % len(COLOURS)]
        Image.new("RGB", (30 + k, 20), colour).save(folder / "photos" / f"{k}.png")
        said = [f"A {colour} picture.", f"it is {colour}", "seen"][:captions]
        records.append({"image": f"photos/{k}.png", "captions": said})
        if splits:
            records[-1]["split"] = splits[k % len(splits)]
    file = folder / "captions.json"
    file.write_text(json.dumps(records))
    return file, records
