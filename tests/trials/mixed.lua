-- Mixed good and bad traffic: every answer is compared with what its request must get.
--
-- Each thread has one connection, so an answer belongs to the request before it. The first argument names a Lua file that returns the
-- cases: {name, method, path, headers, status, present = {text...}, absent = {text...}}.

local threads = {}

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

function init(arguments)
  cases = dofile(arguments[1])
  turn = number * 7
  right, wrong, report = 0, 0, ""
end

function request()
  turn = turn + 1
  case = cases[turn % #cases + 1]
  return wrk.format(case.method, case.path, case.headers)
end

local function fault(status, body)
  if status ~= case.status then
    return "status " .. status
  end
  for _, text in ipairs(case.present) do
    if not body:find(text, 1, true) then return "without " .. text end
  end
  for _, text in ipairs(case.absent) do
    if body:find(text, 1, true) then return "with " .. text end
  end
  -- The same generation of the configuration must have rewritten the path and set the header.
  local in_path, in_header = body:match('"path": "/g(%d+)/'), body:match('"x%-generation": "(%d+)"')
  if in_path ~= in_header then
    return "path of generation " .. tostring(in_path) .. ", header of " .. tostring(in_header)
  end
end

function response(status, headers, body)
  local found = fault(status, body)
  if not found then
    right = right + 1
    return
  end
  wrong = wrong + 1
  if wrong == 1 then
    report = report .. case.name .. ": " .. found .. ": " .. body:sub(1, 300):gsub("%s+", " ") .. "\n"
  end
end

function done(summary, latency)
  local right, wrong = 0, 0
  for _, thread in ipairs(threads) do
    right, wrong = right + thread:get("right"), wrong + thread:get("wrong")
    io.write(thread:get("report"))
  end
  local errors = summary.errors
  io.write(string.format(
    "RESULT right=%d wrong=%d connect=%d read=%d write=%d timeout=%d p99_us=%d\n",
    right, wrong, errors.connect, errors.read, errors.write, errors.timeout, latency:percentile(99)
  ))
end
