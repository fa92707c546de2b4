"""The Lua scripts of the cache: each is one atomic step on the server.

An index is a sorted set of keys by expiry, named by their part before the first colon. `INDEXES` lists the indexes.
A key is served only while its index lists it, and `INDEXES` the index.
"""

INDEX = "@cache:index:"
INDEXES = "@cache:indexes"

# KEYS: key, its index, INDEXES. ARGV: lease, its milliseconds, seconds to stay listed, a value to replace.
# Returns the stored answer or another request's lease; nil when the caller's lease is stored.
#
# A full server may have evicted an index, or INDEXES: an answer that a pattern may have missed since then is not
# served. Nor is a foreign value: one of another type, or a lease without an end.
FETCH = """
local function is_listed(i) return type(redis.pcall('ZSCORE', KEYS[i], KEYS[i - 1])) == 'string' end
if not is_listed(3) then
  redis.call('UNLINK', KEYS[2])
elseif is_listed(2) then
  local value = redis.pcall('GET', KEYS[1])
  if type(value) == 'string' and value ~= ARGV[4] then
    if string.byte(value) ~= 0 then return value end
    local left = redis.call('PTTL', KEYS[1])
    if left >= 0 and left <= tonumber(ARGV[2]) then return value end
  end
end
local now = tonumber(redis.call('TIME')[1])
for i = 2, 3 do
  if redis.call('TYPE', KEYS[i]).ok ~= 'zset' then redis.call('UNLINK', KEYS[i]) end
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  redis.call('ZADD', KEYS[i], 'GT', now + ARGV[3], KEYS[i - 1])
  if redis.call('TTL', KEYS[i]) < tonumber(ARGV[3]) then redis.call('EXPIRE', KEYS[i], ARGV[3]) end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""

# Part of the two scripts below: removes keys. It also removes an empty index from INDEXES (KEYS[1]): requests for names
# that do not exist must not fill the server with indexes.
_UNLIST = """
local function unlist(index, keys)
  redis.call('UNLINK', unpack(keys))
  redis.pcall('ZREM', index, unpack(keys))
  if redis.call('EXISTS', index) == 0 then redis.pcall('ZREM', KEYS[1], index) end
end
"""

# KEYS: INDEXES, key, its index. ARGV: lease, the answer, seconds to keep it. An empty answer gives the lease back.
STORE = f"""{_UNLIST}
local value = redis.pcall('GET', KEYS[2])
if value == ARGV[1] and ARGV[2] ~= '' then
  redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
elseif not value or value == ARGV[1] then
  unlist(KEYS[3], {{KEYS[2]}})
end
"""

# KEYS: INDEXES, then the index of each key or pattern. ARGV: the keys and patterns, then a cursor for each: '' for a
# key, the position in the index for a pattern ('0' at first). Returns the next cursors; '0' at the end.
REMOVE = f"""{_UNLIST}
local next = {{}}
for i = 2, #KEYS do
  local index, found, cursor = KEYS[i], {{ARGV[i - 1]}}, ARGV[#KEYS + i - 2]
  if cursor ~= '' then
    local page = redis.pcall('ZSCAN', index, cursor, 'MATCH', found[1], 'COUNT', 1000)
    cursor, found = page[1] or '0', {{}}
    for j = 1, #(page[2] or found), 2 do found[#found + 1] = page[2][j] end
  end
  if #found > 0 then unlist(index, found) end
  next[i - 1] = cursor
end
return next
"""
