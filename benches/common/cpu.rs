//! Processor time, as the kernel counts it in `/proc`.

use std::fs;
use std::ops::Sub;
use std::path::Path;

use walferry::demo::Server;

use super::Result;
use super::figures::Series;

/// Seconds of processor time that each has taken since it started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// All processes of the source server.
    pub source: f64,
    /// All processes of the target server.
    pub target: f64,
    /// The engine.
    pub own: f64,
}

impl Cpu {
    /// What has been taken up to now; `engine` is the engine's process.
    pub fn now(source: &Server, target: &Server, engine: Option<u32>) -> Result<Self> {
        let own = match engine {
            Some(pid) => of_process(pid)?.unwrap_or(0.0),
            None => 0.0,
        };
        Ok(Self { source: of_server(source)?, target: of_server(target)?, own })
    }

    /// The engine's part of it all.
    pub fn share(self) -> f64 {
        self.own / (self.source + self.target + self.own)
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            source: self.source - before.source,
            target: self.target - before.target,
            own: self.own - before.own,
        }
    }
}

/// The largest resident memory that a running process had, in bytes.
pub fn peak_memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(peak.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// The medians of source, target and engine, shared by the cores of this machine: no run can be shorter. With the cores.
pub fn shared(cpu: &[Series; 3]) -> (Option<f64>, f64) {
    let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    let all: Option<f64> = cpu.iter().map(Series::median).sum();
    (all.map(|seconds| seconds / cores), cores)
}

/// Seconds that a process has taken; none where it has ended.
pub fn of_process(pid: u32) -> Result<Option<f64>> {
    Ok(times(&pid.to_string())?.map(|times| times.own))
}

struct Times {
    parent: u32,
    own: f64,
    /// Of children that have ended and were waited for.
    reaped: f64,
}

/// The kernel's unit in `/proc`, whatever its own tick is: 100 on every platform that it runs servers on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The postmaster, its children, and those that it had.
fn of_server(server: &Server) -> Result<f64> {
    let file = fs::read_to_string(server.data_dir().join("postmaster.pid"))?;
    let postmaster = file.lines().next().unwrap_or_default().trim().to_owned();
    let number: u32 = postmaster.parse()?;
    loop {
        let before = times(&postmaster)?.ok_or("the server is gone")?;
        let mut all = before.own + before.reaped;
        for entry in fs::read_dir(Path::new("/proc"))? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else {
                continue;
            };
            if let Some(child) = times(name)?.filter(|child| child.parent == number) {
                all += child.own + child.reaped;
            }
        }
        let after = times(&postmaster)?.ok_or("the server is gone")?;
        // One that ended meanwhile may have been counted twice or not at all.
        if after.reaped == before.reaped {
            return Ok(all);
        }
    }
}

/// Manual page proc(5), `/proc/pid/stat`; none where there is no such process any more.
fn times(pid: &str) -> Result<Option<Times>> {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return Ok(None) };
    // The name, in brackets, may hold spaces and brackets.
    let rest = text.rsplit_once(')').ok_or("no name in stat")?.1;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let number = |index: usize| -> Result<u32> { Ok(fields.get(index).ok_or("stat is short")?.parse()?) };
    let seconds = |user, system| -> Result<f64> {
        Ok((f64::from(number(user)?) + f64::from(number(system)?)) / TICKS_PER_SECOND)
    };
    Ok(Some(Times { parent: number(1)?, own: seconds(11, 12)?, reaped: seconds(13, 14)? }))
}
