"""The table of an evaluation: mean and spread over seeds, and cells without a number."""

from oneshot.chmm.reports.table import markdown


def row(title, seed, f1, nll=None, **others):
    figures = {"test_f1": f1, "test_precision": f1, "test_recall": f1, "valid_f1": f1}
    return {"dataset": "set", "row": title, "seed": seed, "seconds": 60, "test_nll": nll,
            **figures, **others}  # fmt: skip


def cells(table, title):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_mean_and_spread_over_seeds():
    table = markdown([row("a", 1, 0.70, 0.5), row("a", 2, 0.74, 0.7), row("b", 1, 0.6)])
    # Sample standard deviation of 70 and 74: 2.83.
    assert cells(table, "a")[:6] == ["a", "2", *["72.00 ± 2.83"] * 4]
    assert cells(table, "a")[7:] == ["0.600 ± 0.141", "", "1.0"]
    assert cells(table, "b")[1:4] == ["1", "60.00", "60.00"]


def test_infinity_has_no_spread():
    table = markdown([row("a", seed, 0.7, float("inf")) for seed in (1, 2)])
    assert cells(table, "a")[7] == "inf"


def test_without_gold_the_table_has_what_there_is():
    shared = {"dataset": "set", "seed": 1, "seconds": 0}
    rows = [
        {**shared, "row": "a", "valid_entities": 12, "valid_log_likelihood_per_token": -1.25},
        {**shared, "row": "b", "valid_entities": 9},
        {**shared, "row": "c", "missing": "ValueError: one |\nline"},
    ]
    table = markdown(rows)
    assert "### set (valid: there is no split test)" in table
    assert "| method | seeds | entities | LL/token | minutes |" in table
    assert cells(table, "a") == ["a", "1", "12", "-1.250", "0.0"]
    assert cells(table, "b") == ["b", "1", "9", "", "0.0"]
    assert r"| c | 1 | ValueError: one \| line |  | 0.0 |" in table


def test_a_seed_that_failed_leaves_the_others():
    failed = {"dataset": "set", "row": "a", "seed": 3, "seconds": 0, "missing": "out of memory"}
    table = markdown([row("a", 1, 0.70), row("a", 2, 0.74), failed])
    assert cells(table, "a")[2] == "72.00 ± 2.83 out of memory"


def test_a_method_whose_package_is_missing_says_so():
    missing = {"dataset": "set", "row": "snorkel", "seconds": 0, "missing": "pip install snorkel"}
    assert cells(markdown([missing]), "snorkel")[2] == "pip install snorkel"
