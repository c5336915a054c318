-- Takes one back. ARGV: its id, and for how many seconds that is told. Answers whether it was revoked.
forget(100)
if redis.call('HDEL', ENTRIES, ARGV[1]) == 0 then
    return 0
end
change(ARGV[1])
redis.call('SADD', TAKEN_BACK, ARGV[1])
redis.call('ZADD', EXPIRIES, second + tonumber(ARGV[2]), ARGV[1])
return 1
