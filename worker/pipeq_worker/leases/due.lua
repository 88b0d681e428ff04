-- Moves waiting messages that are due back to the lists that they came from.
--
-- KEYS[1]  sorted set of waiting messages     KEYS[2..] lists of their queue; messages go to no other list
-- ARGV[1]  now, in seconds since the epoch    ARGV[2] most messages to move
-- Each member is JSON: {"list": the list's name, "message": the message as text}
-- Reply: the members that have another form or name another list; they stay in the set. Then the error of a key that is
-- no list; its messages stay in the set, too.
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
local own, bad, problem = {}, {}, ''
for i = 2, #KEYS do
  own[KEYS[i]] = true
end
if #due > 0 then
    -- ZREM of nothing lets a Redis whose memory is full accept the writes after it.
  redis.call('ZREM', KEYS[1], '')
end
for _, member in ipairs(due) do
  local ok, entry = pcall(cjson.decode, member)
  if ok and type(entry) == 'table' and type(entry.message) == 'string' and own[entry.list] then
    local pushed = redis.pcall('LPUSH', entry.list, entry.message)
    if type(pushed) ~= 'table' then
      redis.call('ZREM', KEYS[1], member)
    elseif string.find(pushed.err, 'WRONGTYPE', 1, true) then
      problem = pushed.err
    else
      return pushed
    end
  else
    bad[#bad + 1] = member
  end
end
return {bad, problem}
