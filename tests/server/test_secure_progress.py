"""How far a round's sum has come, as this version and the one before wrote it."""

from fedpeft_server.rounds.secure_progress import Progress


def test_what_is_saved_is_read_again(tmp_path):
    assert Progress.of(tmp_path, 3) == Progress()
    saved = Progress().next(follows=True).save(tmp_path, 3)
    assert Progress.of(tmp_path, 3) == saved == Progress(1, True)


def test_a_round_of_the_version_before_is_opened_by_its_attempt_or_lost(tmp_path):
    """It wrote the number alone; that the shares were let go cannot be ruled out."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "secure-r0003").write_text("2\n")
    assert Progress.of(tmp_path, 3) == Progress(2, opening=True)
