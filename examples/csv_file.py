"""A table in a file: from CSV to a level, a saved model and predictions.

These are the commands `flooding find` and `flooding predict`, here on a table that the script
makes up. Of the labels a fifth are wrong.
"""

import csv
import random
import subprocess
import sys
from pathlib import Path

random.seed(0)
with Path("table.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["age", "hours", "job", "income"])
    for _ in range(400):
        age, hours = random.randint(18, 70), random.randint(10, 60)
        job = random.choice(["office", "shop", "workshop"])
        is_high = age + 2 * hours + 20 * (job == "office") > 125
        if random.random() < 0.2:
            is_high = not is_high
        writer.writerow([age, hours, job, "high" if is_high else "low"])
Path("new.csv").write_text("age,hours,job\n25,20,shop\n60,45,office\n")


def flooding(*words):
    subprocess.run([sys.executable, "-m", "flooding", *words], check=True)


flooding(*"find table.csv --target income --save model --epochs 40 --workers 0 --force".split())
flooding("predict", "model", "new.csv")
# The picture of the search, beside its table and curves.
Path("flooding-find/search.png").replace("csv_file.png")
