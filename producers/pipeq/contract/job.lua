-- What becomes of jobs and their packs when tasks end. Below the lines of pipeq.contract.record, which say how a record
-- is read, and those of pipeq.contract.job.lua(), which set the names in capitals.

-- The job that a task may be a pack of, and its field there. Any task may have any id, and each end looks at one: the
-- field, which is behind the last hyphen, is found before its digits are, so that no id takes long.
local function pack_of(id)
  local job, field = string.match(id, '^(.+)%-([^-]*)$')
  if job and #field <= FIELD_CHARS and string.find(field, '^%d+%.?%d*$') then
    return job, field
  end
end

-- Ends a job whose rows have all been submitted and have all ended.
local function end_job(id, now)
  local job = JOB .. id
  local is = redis.call('HMGET', job, 'state', 'sealed', 'rows', 'succeeded', 'failed', 'stop', 'results')
  local done = (tonumber(is[4] or 0) or 0) + (tonumber(is[5] or 0) or 0)
  if (is[1] == 'validating' or is[1] == 'in_progress') and is[2] == '1' and done >= (tonumber(is[3] or 0) or 0) then
    local has_expired = redis.call('HEXISTS', job, JOB_CODE .. 'expired') == 1
    local last = is[6] or (has_expired and 'expired') or 'completed'
    if is[7] then
      redis.call('SADD', JOBS_FINAL, id)
      redis.call('HSET', job, 'state', 'finalizing', 'then', last, 'rows_ended_at', now)
    else
      redis.call('HSET', job, 'state', last, 'ended_at', now)
      redis.call('SREM', JOBS_OPEN, id)
    end
    redis.call('DEL', JOB_PACKS .. id)
    redis.pcall('PUBLISH', job, last)  -- wakes who waits; a user without this channel finds out a little later
  end
end

-- Counts the rows of a pack that was taken out of the open ones. ABOUT: its field, and numbers; TEXT: its outcomes.
local function count_rows(id, about, text, now)
  local job, outcomes = JOB .. id, JOB_OUTCOMES .. id
  if redis.call('HEXISTS', job, 'state') == 0 then
    return  -- the job was forgotten
  end
  if text ~= '' then
    redis.call('HSET', outcomes, about.field, text)
    redis.call('RPUSH', JOB_DONE .. id, about.field)
  end
  if about.left ~= '' then
    redis.call('HSET', outcomes, about.field .. '+', about.left)
    redis.call('RPUSH', JOB_DONE .. id, about.field .. '+')
  end
  redis.call('HINCRBY', job, 'succeeded', about.succeeded)
  redis.call('HINCRBY', job, 'failed', about.failed)
  redis.call('HINCRBYFLOAT', job, 'device_ms', about.device_ms)
  for code, count in pairs(about.codes) do
    redis.call('HINCRBY', job, JOB_CODE .. code, count)
  end
  redis.call('HSET', job, 'last_at', now)
  redis.call('EXPIRE', job, JOB_TTL_S)
  redis.call('EXPIRE', outcomes, JOB_TTL_S)
  redis.call('EXPIRE', JOB_PACKS .. id, JOB_TTL_S)
  redis.call('EXPIRE', JOB_DONE .. id, JOB_TTL_S)
  end_job(id, now)
end

-- Takes a pack out of the open ones. Returns what they had of it; nil if it is none of them, for instance not any more.
local function take_pack(id, field)
  local rows = redis.call('HGET', JOB_PACKS .. id, field)
  if rows then
    redis.call('HDEL', JOB_PACKS .. id, field)
  end
  return rows
end

-- Why a task ended, as its record says: a code and a sentence.
local function end_of(record)
  local fields = object(record)
  local part, said = fields.pipeq, type(fields.result) == 'table' and fields.result.exc_message
  local error = type(part) == 'table' and type(part.error) == 'table' and part.error or {}
  local code, message = error.code, error.message
  if fields.status == 'REVOKED' and not code then
    said = type(said) == 'table' and said[1] or said
    code = said == 'expired' and 'expired' or 'cancelled'
    message = code == 'expired' and 'it expired before a worker began it' or 'it was cancelled before it had ended'
  end
  return type(code) == 'string' and code or 'internal',
    type(message) == 'string' and message or 'its pack ended without the outcomes of its rows'
end

-- Counts the rows of a task that has ended, if it is a pack, and nobody has read its rows: they all ended as it did.
local function task_ended(id, record, now)
  local job, field = pack_of(id)
  if not job or not ENDED[object(record)[RECORD_STATUS]] then
    return
  end
  local rows = take_pack(job, field)
  local count, heads = string.match(rows or '', '^(%d+):(.*)$')
  if not count then
    return
  end
  local code, message = end_of(record)
  local error = cjson.encode({code = code, message = message, retryable = false})
  local about = {
    field = field, succeeded = 0, failed = tonumber(count), codes = {[code] = tonumber(count)}, left = "", device_ms = 0
  }
  count_rows(job, about, '{"error":' .. error .. ',"rows":' .. heads .. '}', now)
end

-- Whether a job waits for this pack. ABOUT: as for count_rows, with its job.
local function is_open(about)
  return redis.pcall('HEXISTS', JOB_PACKS .. about.job, about.field) == 1
end

-- As the record of a pack whose message has other rows than its producer sent: somebody has overwritten it.
local function other_rows()
  local error = {code = 'invalid_message', message = 'its message has other rows than its producer had sent'}
  return cjson.encode({[RECORD_STATUS] = 'FAILURE', pipeq = {error = error}})
end

-- Counts a pack whose rows were read, and keeps those open that go on alone. PACK: what a worker says of it, whether it
-- is open; ID: its task.
local function end_pack(pack, id, now)
  local about = pack.about
  if not pack.is_open then
    return
  end
  local rows = take_pack(about.job, about.field)
  if tonumber(string.match(rows, '^%d+')) ~= about.succeeded + about.failed + #pack.alone then
    redis.call('HSET', JOB_PACKS .. about.job, about.field, rows)
    return task_ended(id, other_rows(), now)
  end
  for _, one in ipairs(pack.alone) do
    redis.call('HSET', JOB_PACKS .. about.job, one[3], one[4])
  end
  count_rows(about.job, about, pack.outcomes, now)
end
