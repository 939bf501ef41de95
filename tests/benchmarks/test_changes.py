"""What a trace finds beside earlier rows: a model that lost a channel is in the table, and comes first."""

from benchmarks.coverage.changes import changes


def row(spec, prunable=10, stay=2, macs_half=25.0, **more):
    return {
        "spec": spec, "error": "", "conv_prunable": prunable, "conv_outputs": 12, "causes": {"fixed size": stay},
        "macs": 100.0, "macs_half": macs_half, "forward_s": 1.0, "trace_s": 3.0, "forward_bytes": 1, "trace_bytes": 2,
        "tripwires": [], **more,
    }  # fmt: skip


def table(before, now):
    rows = [{r["spec"]: r for r in rows} for rows in (before, now)]
    return changes(*rows)


def verdicts(lines):
    return [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in lines[2 : lines.index("")]]


def test_the_same_rows_are_no_change():
    assert table([row("a")], [row("a")])[0] == "no model lost or gained channels"


def test_what_fails_or_lost_channels_comes_before_what_gained_some():
    before = [row(name) for name in "abcd"]
    now = [row("a", prunable=11), row("b", prunable=9), row("c", error="TraceError: no"), row("d", stay=3)]
    lines = table(before, now)
    assert verdicts(lines) == [("c", "fails"), ("b", "lost"), ("d", "lost"), ("a", "gained")]
    assert "10 -> 9" in lines[3]


def test_convolutions_that_gained_do_not_hide_other_layers_that_lost():
    assert verdicts(table([row("a")], [row("a", prunable=11, stay=5)])) == [("a", "lost")]


def test_a_tripwire_is_a_line_even_if_nothing_else_changed():
    lines = table([row("a")], [row("a", tripwires=["tripwire: outputs differ in fc"])])
    assert verdicts(lines) == [("a", "as before")]
    assert "tripwire: outputs differ in fc" in lines[2]
    assert lines[-1].split("|")[1:4] == [" tripwires ", " 0 ", " 1 "]


def test_models_without_an_earlier_row_are_left_out():
    assert table([], [row("a")]) == ["no model lost or gained channels"]
