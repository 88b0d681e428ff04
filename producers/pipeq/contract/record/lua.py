"""What every script that reads or writes records and marks needs of them, as Lua."""

from __future__ import annotations

from dataclasses import fields

from pipeq.contract import keys
from pipeq.contract.record.fields import ENDED, MAX_BYTES, OPEN_MAX_BYTES, QUEUED_HEAD, STARTED_HEAD, Mark
from pipeq.contract.record.history import HISTORY_MAX

#: Functions that the scripts share.
_LUA_FUNCTIONS = """
-- The fields of a record or a mark. Any client may have written anything there: what is neither has no fields.
local function object(text)
  if type(text) ~= 'string' or #text > RECORD_MAX_BYTES then
    return {}
  end
  local ok, fields = pcall(cjson.decode, text)
  return ok and type(fields) == 'table' and fields or {}
end

-- Whether a record says that its task has ended.
local function has_ended(text)
  return ENDED[object(text)[RECORD_STATUS]]
end

"""

#: The first lines of each script that reads or writes records and marks: names as Lua variables, and those functions.
LUA = "".join(
    f"local {name} = {value}\n"
    for name, value in {
        "ENDED": "{" + ", ".join(f"{word} = true" for word in sorted(ENDED)) + "}",
        "RECORD_MAX_BYTES": MAX_BYTES,
        "OPEN_MAX_BYTES": OPEN_MAX_BYTES,
        "RECORD_STATUS": "'status'",
        "QUEUED_HEAD": f"'{QUEUED_HEAD}'",
        "STARTED_HEAD": f"'{STARTED_HEAD}'",
        "RETRY_HEAD": """'{"status": "RETRY",'""",
        # As a client of an earlier version writes it.
        "PLAIN_QUEUED_HEAD": """'{"status": "QUEUED",'""",
        # Of a task without a record: in front of its id as JSON, and behind it.
        "STARTED_REST": """{' "result": null, "children": [], "task_id": ', ', "pipeq": {}}'}""",
        "PENDING_TTL_S": keys.PENDING_TTL_S,
        "HISTORY_MAX": HISTORY_MAX,
        "LOST_WORKER": "'worker'",
        "LOST_STARTED": "'started_at'",
        "LOST_CODE": "{'code', 'worker_lost'}",
        **{f"MARK_{one.name.upper()}": f"'{one.name}'" for one in fields(Mark)},
    }.items()
)
LUA += _LUA_FUNCTIONS
