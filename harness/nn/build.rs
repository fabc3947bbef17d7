//! With feature `cuda`: compiles `src/ops/cuda/*.cu` to PTX, which the crate embeds. With feature `mkl`: links the
//! static library below `MKLROOT`. Otherwise nothing.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const SOURCES: &str = "src/ops/cuda";

/// Compute capability the kernels are compiled for unless `CUDA_COMPUTE_CAP` names another: the first with
/// bfloat16. A driver compiles PTX for the device it finds, which may be newer, never older.
const COMPUTE_CAP: &str = "80";

const TOOLKITS: [&str; 4] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let feature = |name: &str| env::var_os(format!("CARGO_FEATURE_{name}")).is_some();
    let cuda = || if feature("CUDA") { compile_all() } else { Ok(()) };
    let mkl = || if feature("MKL") { link_mkl() } else { Ok(()) };
    if let Err(problem) = cuda().and_then(|()| mkl()) {
        eprintln!("error: {problem}");
        exit(1);
    }
}

/// The sequential library: our tasks are parallel already.
fn link_mkl() -> Result<(), String> {
    println!("cargo:rerun-if-env-changed=MKLROOT");
    let root =
        env::var_os("MKLROOT").map(PathBuf::from).unwrap_or_else(|| "/opt/intel/oneapi/mkl/latest".into());
    let folder = root.join("lib");
    let libraries = ["mkl_intel_lp64", "mkl_sequential", "mkl_core"];
    if let Some(missing) =
        libraries.map(|name| folder.join(format!("lib{name}.a"))).iter().find(|f| !f.exists())
    {
        let missing = missing.display();
        return Err(format!(
            "feature `mkl`: {missing} does not exist; set MKLROOT to a folder whose lib/ has the static libraries (the \
             packages mkl-static and mkl-include unpack to one)"
        ));
    }
    println!("cargo:rustc-link-search=native={}", folder.display());
    for name in libraries {
        println!("cargo:rustc-link-lib=static:-bundle={name}");
    }
    Ok(())
}

fn compile_all() -> Result<(), String> {
    for variable in TOOLKITS.iter().chain(&["CUDA_COMPUTE_CAP"]) {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let arch = compute_cap()?;
    let nvcc = find_nvcc()?;
    let version = cuda_version(&nvcc)?;
    let sources = sources()?;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    for group in sources.chunks(threads) {
        let (nvcc, out) = (&nvcc, &out);
        std::thread::scope(|scope| {
            let jobs: Vec<_> =
                group.iter().map(|source| scope.spawn(move || compile(nvcc, arch, source, out))).collect();
            jobs.into_iter().try_for_each(|job| job.join().map_err(|_| "a thread panicked".to_owned())?)
        })?;
    }
    let mut list = format!(
        "/// Compute capability of the kernels' PTX, 90 for 9.0.\npub(crate) const COMPUTE_CAP: u32 = {arch};\n"
    );
    let _ = writeln!(list, "/// CUDA version that a driver must know to read it, 13000 for 13.0.");
    let _ = writeln!(list, "pub(crate) const CUDA_VERSION: i32 = {version};");
    list += "/// PTX by module.\npub(crate) const MODULES: &[(&str, &str)] = &[\n";
    for source in &sources {
        let name = stem(source);
        let _ = writeln!(list, "    ({name:?}, include_str!(concat!(env!(\"OUT_DIR\"), \"/{name}.ptx\"))),");
    }
    list += "];\n";
    fs::write(out.join("kernels.rs"), list).map_err(|e| format!("{}: {e}", out.display()))
}

/// All kernels; headers only make the build run again.
fn sources() -> Result<Vec<PathBuf>, String> {
    println!("cargo:rerun-if-changed={SOURCES}");
    let entries = fs::read_dir(SOURCES).map_err(|e| format!("{SOURCES}: {e}"))?;
    let mut sources: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|p| extension(p, "cu")).collect();
    sources.sort();
    Ok(sources)
}

fn extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|e| e == wanted)
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

/// `90` and `9.0` both mean compute capability 9.0.
fn compute_cap() -> Result<u32, String> {
    let text = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| COMPUTE_CAP.to_owned());
    match text.replace('.', "").parse() {
        Ok(cap) if cap >= 80 => Ok(cap),
        _ => Err(format!("CUDA_COMPUTE_CAP={text}: 80 (Ampere) or more is expected, as in 90 or 9.0")),
    }
}

fn find_nvcc() -> Result<PathBuf, String> {
    let program = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let toolkits = TOOLKITS.iter().filter_map(env::var_os).map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = toolkits.chain(env::split_paths(&path)).chain([PathBuf::from("/usr/local/cuda/bin")]);
    folders.map(|folder| folder.join(&program)).find(|nvcc| nvcc.is_file()).ok_or_else(|| {
        format!(
            "feature `cuda` needs NVIDIA's compiler, and there is no `{program}` in $CUDA_HOME/bin, on PATH or in \
             /usr/local/cuda/bin. Install the CUDA toolkit and set CUDA_HOME, or let \
             `eval \"$(ci/cuda/toolchain.sh DIR)\"` make a tool chain; without the feature nothing of it is needed"
        )
    })
}

/// 13000 for `Cuda compilation tools, release 13.0, V13.0.88`: what a driver must know to read its PTX.
fn cuda_version(nvcc: &Path) -> Result<u32, String> {
    let output =
        Command::new(nvcc).arg("--version").output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let release = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    let numbers = release.and_then(|r| r.split_once('.'));
    numbers
        .and_then(|(major, minor)| Some(1000 * major.parse::<u32>().ok()? + 10 * minor.parse::<u32>().ok()?))
        .ok_or_else(|| format!("{} --version names no release: {text}", nvcc.display()))
}

fn compile(nvcc: &Path, arch: u32, source: &Path, out: &Path) -> Result<(), String> {
    let ptx = out.join(format!("{}.ptx", stem(source)));
    let output = Command::new(nvcc)
        .args(["-ptx", "-O3", "-std=c++17", "--Werror=all-warnings"])
        .arg(format!("-arch=compute_{arch}"))
        .arg("-o")
        .args([&ptx, source])
        .output()
        .map_err(|e| format!("{}: {e}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{} cannot compile {}:\n{said}", nvcc.display(), source.display()))
}
