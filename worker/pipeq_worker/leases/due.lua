-- Moves waiting messages whose time has come back to the lists that they came from.
--
-- KEYS[1]  sorted set of waiting messages     KEYS[2..] lists of its queue: nothing goes anywhere else
-- ARGV[1]  now, in seconds since the epoch    ARGV[2] most to move
-- Each member is JSON: {"list": the list's name, "message": the message as text}
-- Reply: the members that are not, or that name another list; they stay. And what Redis said of a key that is no list,
-- whose messages stay, too.
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
local own, bad, problem = {}, {}, ''
for i = 2, #KEYS do
  own[KEYS[i]] = true
end
if #due > 0 then
  -- Removes nothing; even a Redis whose memory is full takes the other writes after it.
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
