-- Forgets what is over. ARGV: how many at most. Answers how many there were.
return forget(tonumber(ARGV[1]))
