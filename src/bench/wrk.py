"""The load from wrk, which takes less processor time than our own generator."""

import asyncio
import math
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil

from bench.load import GIVE_UP_SECONDS, BenchError, Load, Measure, cpu_seconds, put_load
from scripts.servers import HOST

# wrk aborts its last requests when its time is up, and aborted requests cost the application other work. So the script
# sends no more requests once the time is over, and wrk is ended after the last answer. wrk calls `request` once
# without sending the result, hence the -1. The variables are global because `get` finds only these.
_SCRIPT = """
local requests, expected, seconds, threads = {%s}, %d, %f, {}
local ffi, moment = require("ffi"), nil
sent, received, began, ended, unexpected = -1, 0, 0, 0, ""

ffi.cdef("typedef struct { long s, ns; } moment_t; int clock_gettime(int clock, moment_t *);")

local function now()
  moment = moment or ffi.new("moment_t")
  ffi.C.clock_gettime(1, moment)
  return tonumber(moment.s) + tonumber(moment.ns) / 1e9
end

function setup(thread) table.insert(threads, thread) end

function delay()
  if began == 0 then began = now() end
  return now() < began + seconds and 0 or 3600000
end

function request()
  sent = sent + 1
  return requests[sent %% #requests + 1]
end

function response(status, headers, body)
  received = received + 1
  if status ~= expected and unexpected == "" then unexpected = status .. " " .. body end
  if received == sent then
    ended = now()
    if ended >= began + seconds then io.stderr:write("finished\\n") end
  end
end

function done(summary, latency)
  local errors, thread = summary.errors, threads[1]
  io.write(string.format("\\nresult %%d %%f %%d %%d %%d %%s",
    thread:get("received"), thread:get("ended") - thread:get("began"), latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.timeout, thread:get("unexpected")))
end
"""


def find_wrk() -> str | None:
    return shutil.which("wrk")


def run(load: Load) -> Measure:
    """Send each request once to warm up, then repeat all of them on any connection and measure."""
    asyncio.run(put_load(Load(load.port, load.pid, load.requests, load.status, 0)))  # to warm up
    server = psutil.Process(load.pid)
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "load.lua"
        script.write_text(_SCRIPT % (",".join(map(_quoted, load.requests)), load.status, load.seconds))
        command = [
            find_wrk() or "wrk",
            "--threads",
            "1",
            "--connections",
            str(load.connections),
            "--script",
            str(script),
        ]
        most = math.ceil(load.seconds + GIVE_UP_SECONDS)
        command += ["--duration", f"{most}s", "--timeout", f"{most}s", f"http://{HOST}:{load.port}"]
        began = cpu_seconds(server)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as wrk:
            try:
                said = wrk.stderr.readline() if wrk.stderr else ""
                cpu = cpu_seconds(server) - began
                wrk.send_signal(signal.SIGINT)
                output, errors = wrk.communicate(timeout=GIVE_UP_SECONDS)
            finally:
                wrk.kill()
    *figures, unexpected = output.partition("\nresult ")[2].split(" ", 5)
    if unexpected:
        raise BenchError(f"unexpected answer: {unexpected}")
    if said != "finished\n" or len(figures) != 5 or figures[4] != "0":
        raise BenchError(f"wrk did not finish: {said}{errors}{output}")
    answers, seconds, p50_us, p99_us, _ = map(float, figures)
    return Measure(cpu / answers * 1e6, answers / seconds, p50_us / 1e3, p99_us / 1e3)


def _quoted(request: bytes) -> str:
    return '"' + "".join(f"\\{byte:03d}" for byte in request) + '"'
