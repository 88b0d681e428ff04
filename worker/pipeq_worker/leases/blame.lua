-- How many workers have died with a task, as its mark says. Below the lines of pipeq.contract.record.

-- More retries or deaths than any worker counts.
local MOST = 1e6

local function count(value)
  local number = tonumber(value)
  -- Comparisons with NaN are always false.
  return number and number >= 0 and number <= MOST and math.floor(number) or 0
end

-- The deaths of a task that a worker has now, and the tries that ended with one (nil for none).
-- MARK: its mark, or false. KNOWN: deaths of its earlier tries. WORKER: who has it now. PREFIX: of the keys of living
-- workers.
local function deaths_of(mark, known, worker, prefix)
  if not mark then
    return known, nil
  end
  local left = object(mark)
  -- If the mark's worker is alive, the message was delivered twice, and nobody died. A mark must name a worker.
  local its = left[MARK_WORKER]
  local lives = type(its) ~= 'string' or its == worker or redis.call('EXISTS', prefix .. its) == 1
  local lost = type(left[MARK_LOST_TRIES]) == 'table' and left[MARK_LOST_TRIES] or {}
  if #lost > HISTORY_MAX then
    lost = {} -- no worker wrote that
  end
  if not lives and its ~= '' then
    lost[#lost + 1] = {
      [LOST_WORKER] = its, [LOST_STARTED] = tonumber(left[MARK_SINCE]), [LOST_CODE[1]] = LOST_CODE[2],
    }
  end
  if #lost > HISTORY_MAX then
    table.remove(lost, 1)
  end
  return math.max(known, count(left[MARK_DEATHS])) + (lives and 0 or 1), #lost > 0 and lost or nil
end

