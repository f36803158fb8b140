//! `xvmm list`: the running domains in the columns of `xl list`.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::domain::{DomainEntry, Registry};
use crate::exit::{ExitStatus, Failure};

pub(super) fn list(run_dir: &Path) -> Result<ExitStatus, Failure> {
    let domains = match Registry::open_existing(run_dir)? {
        Some(registry) => registry.list()?,
        None => Vec::new(),
    };
    super::print(&table(&domains, Path::new("/proc")));
    Ok(ExitStatus::Success)
}

fn table(domains: &[DomainEntry], proc: &Path) -> String {
    let mut text = row("Name", "ID", "Mem", "VCPUs", "State", "Time(s)");
    for domain in domains {
        let process = proc.join(domain.pid.to_string());
        text += &row(
            &domain.name,
            &domain.domid.to_string(),
            &(domain.config.memory >> 20).to_string(),
            &domain.config.vcpus.to_string(),
            state(&process),
            &format!("{:.1}", cpu_seconds(&process).unwrap_or(0.0)),
        );
    }
    text
}

fn row(name: &str, id: &str, memory: &str, vcpus: &str, state: &str, time: &str) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(text, "{name:<40} {id:>5} {memory:>7} {vcpus:>5}  {state:<6}  {time:>9}");
    text
}

/// The state in the letters of `xl list`: `r` when a vCPU runs, `b` when all of them wait.
fn state(process: &Path) -> &'static str {
    let Ok(threads) = fs::read_dir(process.join("task")) else { return "------" };
    let runs = threads.flatten().any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // `TID (vcpu0) R ..`; a name may have a parenthesis in it.
        let vcpu = stat.split_once('(').is_some_and(|(_, rest)| rest.starts_with("vcpu"));
        vcpu && stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('R'))
    });
    if runs { "r-----" } else { "-b----" }
}

/// Seconds of host CPU time that the process has used (proc_pid_stat(5), fields 14 and 15).
fn cpu_seconds(process: &Path) -> Option<f64> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    // SAFETY: sysconf takes a number.
    let ticks = i32::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|ticks| *ticks > 0)?;
    Some((f64::from(user) + f64::from(system)) / f64::from(ticks))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::DomainConfig;

    /// A /proc with one process of these threads.
    fn proc(threads: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let process = dir.path().join(std::process::id().to_string());
        for (tid, (name, state)) in threads.iter().enumerate() {
            let task = process.join("task").join(tid.to_string());
            fs::create_dir_all(&task).unwrap();
            fs::write(task.join("stat"), format!("{tid} ({name}) {state} 1 1 1")).unwrap();
        }
        fs::write(process.join("stat"), "7 (x) y) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0").unwrap();
        dir
    }

    fn state_of(threads: &[(&str, &str)]) -> &'static str {
        state(&proc(threads).path().join(std::process::id().to_string()))
    }

    #[test]
    fn a_domain_runs_when_one_of_its_vcpus_does() {
        assert_eq!(state_of(&[("xvmm", "S"), ("vcpu0", "S"), ("vcpu1", "R")]), "r-----");
        assert_eq!(state_of(&[("xvmm", "R"), ("vcpu0", "S"), ("R) R", "S")]), "-b----");
        assert_eq!(state(Path::new("/nonexistent")), "------");
    }

    #[test]
    fn a_table_of_domains() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        let config =
            DomainConfig { name: Some("web".into()), memory: 1 << 30, vcpus: 2, ..DomainConfig::default() };
        let _domain = registry.create(&config).unwrap();
        let text = table(&registry.list().unwrap(), proc(&[("vcpu0", "R")]).path());
        // SAFETY: sysconf takes a number.
        assert_eq!(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }, 100);
        let expected = "\
Name                                        ID     Mem VCPUs  State     Time(s)
web                                          1    1024     2  r-----        2.0
";
        assert_eq!(text, expected);
    }
}
