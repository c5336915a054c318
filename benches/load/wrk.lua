-- One run of wrk. The argument names a Lua file that returns what to send and what to expect:
--   {method, path, headers, bytes, lines, header, prefix, paths, once, spent, check, status, text}
-- `lines` is a file with one credential (or path) for each request; `once` stops behind the last one and leaves the file `spent`.
-- With `check` every answer is looked at, which costs wrk half its speed; without it what wrk counts itself must do.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

local function composed(plan, line)
  local headers, path = {}, plan.path
  for name, value in pairs(plan.headers) do headers[name] = value end
  if plan.paths then path = line else headers[plan.header] = plan.prefix .. line end
  return wrk.format(plan.method, path, headers, wrk.body)
end

function init(arguments)
  local plan = dofile(arguments[1])
  wrong, fault = 0, ""
  wrk.method, wrk.path = plan.method, plan.path
  for name, value in pairs(plan.headers) do wrk.headers[name] = value end
  if plan.bytes > 0 then wrk.body = string.rep("x", plan.bytes) end

  if plan.lines then
    -- wrk.format wants the Host that wrk.init would set afterwards.
    plan.headers["Host"] = wrk.headers["Host"]
    local requests, turn, spent = {}, 0, false
    for line in io.lines(plan.lines) do requests[#requests + 1] = composed(plan, line) end
    function request()
      turn = turn + 1
      if turn > #requests then
        if plan.once and not spent then
          spent = true
          io.open(plan.spent, "w"):close()
          wrk.thread:stop()
        end
        turn = 1
      end
      return requests[turn]
    end
  end

  if plan.check then
    function response(status, _, body)
      if status ~= plan.status or not body:find(plan.text) then
        wrong = wrong + 1
        if wrong == 1 then fault = status .. " " .. body:sub(1, 300) end
      end
    end
  end
end

function done(summary, latency)
  local wrong, fault = 0, ""
  for _, thread in ipairs(threads) do
    wrong = wrong + thread:get("wrong")
    if fault == "" then fault = thread:get("fault") end
  end
  local errors = summary.errors
  io.write(string.format(
    "RESULT requests=%d bytes=%d micros=%d refused=%d connect=%d read=%d write=%d timeout=%d p50=%d p99=%d wrong=%d\nFAULT %s\n",
    summary.requests, summary.bytes, summary.duration, errors.status, errors.connect, errors.read, errors.write, errors.timeout,
    latency:percentile(50), latency:percentile(99), wrong, (fault:gsub("%s+", " "))
  ))
end
