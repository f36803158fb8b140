//! `xvmm run`: from flags to a description of a guest, and on to the runner.

use std::path::PathBuf;
use std::time::Duration;

use super::Runner;
use super::args::RunArgs;
use crate::config::{
    ConfigError, DEFAULT_BIOS, DEFAULT_IMAGES_DIR, DEFAULT_KEYMAP, DEFAULT_VGABIOS, DiskSpec, DomainConfig,
    HvmConfig, NetConfig, Problem, VncConfig, check_name, parse_memory, parse_switch, parse_vcpus,
};
use crate::exit::{ExitStatus, Failure};

pub(super) fn run(args: RunArgs, run_dir: PathBuf, runner: Runner) -> Result<ExitStatus, Failure> {
    runner(describe(args, run_dir)?)
}

/// The description that the flags give.
fn describe(args: RunArgs, run_dir: PathBuf) -> Result<DomainConfig, ConfigError> {
    let images_dir = args.images_dir.or_else(|| super::path_variable("XVMM_IMAGES_DIR"));
    if let Some(name) = &args.name {
        check_name(name)?;
    }
    let mut disks = args.disk.iter().map(|spec| DiskSpec::parse(spec)).collect::<Result<Vec<_>, _>>()?;
    if let Some(file) = &args.cdrom {
        disks.push(DiskSpec::parse(&format!("vdev=hdc,devtype=cdrom,target={}", file.to_string_lossy()))?);
    }
    if args.hvm {
        HvmConfig::name_disks(&mut disks);
    }
    let hvm = args
        .hvm
        .then(|| {
            Ok(HvmConfig {
                bios: args.bios.unwrap_or_else(|| DEFAULT_BIOS.into()),
                acpi: parse_switch("--acpi", &args.acpi)?,
                vgabios: args.vgabios.unwrap_or_else(|| DEFAULT_VGABIOS.into()),
                hpet: parse_switch("--hpet", &args.hpet)?,
                localtime: args.localtime,
                boot: args.boot,
                apic: parse_switch("--apic", &args.apic)?,
                cpu: args.cpu.parse()?,
                viridian: args.viridian.parse()?,
            })
        })
        .transpose()?;
    let vnc = describe_vnc(args.vnc, args.vnc_password_file, args.keymap)?;
    let config = DomainConfig {
        name: args.name,
        hvm,
        kernel: args.kernel.unwrap_or_default(),
        initrd: args.initrd,
        cmdline: args.cmdline,
        memory: parse_memory(&args.memory)?,
        vcpus: parse_vcpus(&args.vcpus)?,
        disks: DiskSpec::assign(disks)?,
        nets: args.net.iter().map(|spec| spec.parse()).collect::<Result<Vec<NetConfig>, _>>()?,
        console: args.console.parse()?,
        run_dir,
        images_dir: images_dir.unwrap_or_else(|| DEFAULT_IMAGES_DIR.into()),
        shutdown_timeout: parse_seconds("--shutdown-timeout", &args.shutdown_timeout)?,
        on_reboot: args.on_reboot.parse()?,
        vnc,
    };
    config.validate()?;
    Ok(config)
}

/// What `--vnc` and the flags beside it give.
fn describe_vnc(
    listen: Option<String>,
    password_file: Option<PathBuf>,
    keymap: Option<String>,
) -> Result<Option<VncConfig>, ConfigError> {
    let Some(listen) = listen else { return Ok(None) };
    // The process may be in another directory when it reads the file again.
    let password_file = password_file.map(|file| std::path::absolute(&file).unwrap_or(file));
    Ok(Some(VncConfig {
        listen: listen.parse()?,
        password_file,
        keymap: keymap.unwrap_or_else(|| DEFAULT_KEYMAP.into()),
    }))
}

/// Parses a number of seconds, at most a year.
pub(super) fn parse_seconds(flag: &'static str, text: &str) -> Result<Duration, ConfigError> {
    let seconds = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    seconds.filter(|seconds| *seconds <= 365 * 86400).map(Duration::from_secs).ok_or_else(|| ConfigError {
        flag,
        value: text.to_owned(),
        problem: Problem::Syntax("not a whole number of seconds, at most a year; write 0 for at once".into()),
    })
}
