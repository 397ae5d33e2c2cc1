"""What the log says of endings behind a real Envoy, which resets each stream in the moment in which it closes it."""

import asyncio
import json
from collections import Counter

import pytest

from tests.e2e.clients import call
from tests.e2e.harness import Stage, completion, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

COUNT = 60
# what each mode shows of a response's end
ENDINGS = {"full-duplex": "done", "streamed": "done", "buffered": "done", "standalone": None, "headers-only": None}


@pytest.mark.parametrize(("variant", "ending"), ENDINGS.items(), ids=ENDINGS)
async def test_a_request_that_went_well(stage: Stage, variant: str, ending: str | None) -> None:
    """Every line of the log says so, or says nothing where nothing is known: nobody is gone."""
    gateway = await stage.gateway(variant)
    ids = [f"{variant}-{number}" for number in range(COUNT)]
    body = completion(300)
    answers = await asyncio.gather(
        *(call("http1", str(gateway.address), body=body, headers=[("x-request-id", given)]) for given in ids)
    )
    assert Counter(answer.status for answer in answers) == {200: COUNT}
    await until(lambda: stage.idle(gateway), "no stream is open any more")
    lines = await until(lambda: logged(stage, ids), "all are logged")
    assert Counter((line["status"], line["ending"]) for line in lines) == {(200, ending): COUNT}
    stage.forget()


def logged(stage: Stage, ids: list[str]) -> list[dict[str, object]]:
    """The lines of these requests, once all are there."""
    text = stage.picker.log()
    whole = text[: text.rfind("\n") + 1]  # the last line may be half written
    lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
    wanted = set(ids)
    found = [line for line in lines if line.get("request_id") in wanted]
    return found if len(found) == len(ids) else []
