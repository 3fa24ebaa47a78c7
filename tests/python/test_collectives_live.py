"""`check_live` in a job of four processes on loopback: the same collectives, and a job that would hang."""

from test_distributed import COUNT, run_job


def test_a_job_that_would_hang_is_told_on_every_process(tmp_path):
    answers = run_job(tmp_path / "job", "-", "same", "hang")
    assert [a["status"] for a in answers["same"]] == ["same"] * COUNT
    for answer in answers["hang"]:
        assert answer["error"] == "DistributedError"
        assert "process 0 waits for ever: it is at all-reduce" in answer["message"]
        assert "process 2 is at all-gather" in answer["message"]
        assert answer["message"].count("job_scenarios.py:") == 2
