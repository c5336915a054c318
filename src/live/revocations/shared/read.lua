-- What changed after a revision, in the order of the changes. ARGV: the revision, and how many at most. Answers when all this was born,
-- the last revision, and for each its id, the revision of its last change, and its entry, empty when it was taken back.
local ids = redis.call('ZRANGEBYSCORE', CHANGES, '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local changes = {}
for i = 1, #ids, 2 do
    changes[#changes + 1] = ids[i]
    changes[#changes + 1] = ids[i + 1]
    changes[#changes + 1] = redis.call('HGET', ENTRIES, ids[i]) or ''
end
return {born, revision, changes}
