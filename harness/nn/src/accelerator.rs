//! NVIDIA GPUs: what is there, what is missing, and opening one.
//!
//! [`survey`] asks the driver through the system's loader, so that it works in any build and on any machine;
//! [`open`] needs feature `cuda`.

use std::sync::OnceLock;

use candle_core::Result;
use libloading::Library;
use replica_core::trial;

/// The driver's library.
const DRIVER: &str = "libcuda.so.1";

/// cuBLAS by major version of CUDA, of which a build wants one, and cuRAND, which candle opens with a device.
const LIBRARIES: [&str; 3] = ["libcublas.so.13", "libcublas.so.12", "libcurand.so.10"];

/// What the kernels of this build ask of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Least compute capability, 80 for 8.0.
    pub compute_cap: u32,
    /// CUDA version a driver must know to read the PTX, 13000 for 13.0.
    pub cuda: i32,
}

/// What the kernels of this build ask of a machine; nothing without feature `cuda`.
pub fn needs() -> Option<Needs> {
    #[cfg(feature = "cuda")]
    {
        use crate::ops::cuda::kernels::{COMPUTE_CAP, CUDA_VERSION};
        Some(Needs { compute_cap: COMPUTE_CAP, cuda: CUDA_VERSION })
    }
    #[cfg(not(feature = "cuda"))]
    None
}

/// A GPU as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Product name.
    pub name: String,
    /// 90 for 9.0.
    pub compute_cap: u32,
    /// Bytes.
    pub memory: u64,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The newest CUDA version the driver knows, 13000 for 13.0; nothing without a driver.
    pub driver: Option<i32>,
    /// Its GPUs, in the order of `cuda:N`.
    pub gpus: Vec<Gpu>,
    /// Libraries of the toolkit that load.
    pub libraries: Vec<&'static str>,
    /// What the loader or the driver complained about.
    pub problem: Option<String>,
}

/// `13.0` for 13000.
pub fn cuda_version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// `9.0` for 90.
pub fn compute_capability(number: u32) -> String {
    format!("{}.{}", number / 10, number % 10)
}

/// Looks for a driver, its GPUs, and libraries; once a process.
pub fn survey() -> &'static Survey {
    static SURVEY: OnceLock<Survey> = OnceLock::new();
    SURVEY.get_or_init(look)
}

fn look() -> Survey {
    let libraries = LIBRARIES.into_iter().filter(|name| load(name).is_ok()).collect();
    let mut survey = Survey { libraries, ..Survey::default() };
    // SAFETY: the library is NVIDIA's driver.
    let asked = load(DRIVER).and_then(|driver| unsafe { ask(driver, &mut survey) });
    survey.problem = asked.err();
    survey
}

/// Has the system's loader find one of NVIDIA's libraries. It stays loaded: drivers do not like to be taken away.
fn load(name: &str) -> std::result::Result<&'static Library, String> {
    // SAFETY: these libraries may be loaded at any time.
    match unsafe { Library::new(name) } {
        Ok(library) => Ok(Box::leak(Box::new(library))),
        Err(e) => {
            let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            Err(format!("{name} does not load: {why}"))
        }
    }
}

/// `CUresult`: 0 is success.
type Status = i32;

/// The name the driver has for a status.
///
/// # Safety
/// `driver` is NVIDIA's libcuda.
unsafe fn status_name(driver: &Library, status: Status) -> String {
    type Name = unsafe extern "C" fn(Status, *mut *const std::ffi::c_char) -> Status;
    let mut text = std::ptr::null();
    // SAFETY: the signature of cuda.h; the driver's names are static strings.
    let name = unsafe {
        driver.get::<Name>(b"cuGetErrorName\0").ok().and_then(|f| {
            (f(status, &mut text) == 0 && !text.is_null())
                .then(|| std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned())
        })
    };
    name.unwrap_or_else(|| format!("status {status}"))
}

/// Fills in what the driver says.
///
/// # Safety
/// `driver` is NVIDIA's libcuda.
unsafe fn ask(driver: &Library, survey: &mut Survey) -> std::result::Result<(), String> {
    type Init = unsafe extern "C" fn(u32) -> Status;
    type Number = unsafe extern "C" fn(*mut i32) -> Status;
    type Get = unsafe extern "C" fn(*mut i32, i32) -> Status;
    type Name = unsafe extern "C" fn(*mut std::ffi::c_char, i32, i32) -> Status;
    type Memory = unsafe extern "C" fn(*mut usize, i32) -> Status;
    type Attribute = unsafe extern "C" fn(*mut i32, i32, i32) -> Status;
    // cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    const MAJOR: i32 = 75;
    const MINOR: i32 = 76;

    let check = |what: &str, status: Status| match status {
        0 => Ok(()),
        // SAFETY: passed on.
        _ => Err(format!("{what} says {}", unsafe { status_name(driver, status) })),
    };
    macro_rules! symbol {
        ($name:literal as $t:ty) => {
            // SAFETY: the signature of cuda.h.
            unsafe { driver.get::<$t>(concat!($name, "\0").as_bytes()) }
                .map_err(|e| format!("{DRIVER} has no {}: {e}", $name))?
        };
    }
    let version = symbol!("cuDriverGetVersion" as Number);
    let init = symbol!("cuInit" as Init);
    let count = symbol!("cuDeviceGetCount" as Number);
    let get = symbol!("cuDeviceGet" as Get);
    let name = symbol!("cuDeviceGetName" as Name);
    let memory = symbol!("cuDeviceTotalMem_v2" as Memory);
    let attribute = symbol!("cuDeviceGetAttribute" as Attribute);
    let mut number = 0;
    // SAFETY: pointers to locals of the types that cuda.h names, here and below.
    check("cuDriverGetVersion", unsafe { version(&mut number) })?;
    survey.driver = Some(number);
    check("cuInit", unsafe { init(0) })?;
    check("cuDeviceGetCount", unsafe { count(&mut number) })?;
    for ordinal in 0..number {
        let (mut device, mut major, mut minor, mut bytes) = (0, 0, 0, 0);
        let mut text = [0; 256];
        check("cuDeviceGet", unsafe { get(&mut device, ordinal) })?;
        check("cuDeviceGetName", unsafe { name(text.as_mut_ptr(), text.len() as i32 - 1, device) })?;
        check("cuDeviceTotalMem", unsafe { memory(&mut bytes, device) })?;
        check("cuDeviceGetAttribute", unsafe { attribute(&mut major, MAJOR, device) })?;
        check("cuDeviceGetAttribute", unsafe { attribute(&mut minor, MINOR, device) })?;
        // SAFETY: the driver ends names with 0, and the last byte was never handed out.
        let text = unsafe { std::ffi::CStr::from_ptr(text.as_ptr()) };
        survey.gpus.push(Gpu {
            name: text.to_string_lossy().into_owned(),
            compute_cap: (10 * major + minor) as u32,
            memory: bytes as u64,
        });
    }
    Ok(())
}

impl Survey {
    /// What keeps `cuda:ordinal` from being used by kernels with these needs, and what to do about it.
    pub fn problem_with(&self, ordinal: usize, needs: Needs) -> Option<String> {
        let Some(driver) = self.driver else {
            let why = self.problem.as_deref().unwrap_or("no driver was found");
            return Some(format!("{why}; install NVIDIA's driver, or put its folder on LD_LIBRARY_PATH"));
        };
        if driver < needs.cuda {
            return Some(format!(
                "the driver knows CUDA {}, the kernels of this build need {}; install a newer driver, or build with a \
                 toolkit of the driver's version",
                cuda_version(driver),
                cuda_version(needs.cuda)
            ));
        }
        let Some(gpu) = self.gpus.get(ordinal) else {
            let why = self.problem.clone().unwrap_or_else(|| format!("there are {}", self.gpus.len()));
            return Some(format!("there is no GPU number {ordinal}: {why}; see CUDA_VISIBLE_DEVICES"));
        };
        if gpu.compute_cap < needs.compute_cap {
            return Some(format!(
                "{} has compute capability {}, the kernels of this build need {}; build with CUDA_COMPUTE_CAP={} (80 at \
                 least)",
                gpu.name,
                compute_capability(gpu.compute_cap),
                compute_capability(needs.compute_cap),
                gpu.compute_cap
            ));
        }
        let major = needs.cuda / 1000;
        let wanted = [format!("libcublas.so.{major}"), "libcurand.so.10".to_owned()];
        let missing = wanted.into_iter().find(|name| !self.libraries.contains(&name.as_str()))?;
        let found = if self.libraries.is_empty() { "none".to_owned() } else { self.libraries.join(", ") };
        Some(format!(
            "{missing} does not load (found: {found}); install the libraries of CUDA {major}, or put their folder on \
             LD_LIBRARY_PATH"
        ))
    }
}

/// Opens the device that a trial computes on.
///
/// # Errors
/// What is missing, and what to do about it.
pub fn open(device: trial::Device) -> Result<candle_core::Device> {
    match device {
        trial::Device::Cpu => Ok(candle_core::Device::Cpu),
        trial::Device::Cuda(ordinal) => open_cuda(ordinal),
    }
}

/// The first GPU for a test, or nothing and a line that says why. It goes past the test harness, which would swallow it.
#[cfg(feature = "cuda")]
pub fn gpu_for_tests() -> Option<candle_core::Device> {
    use std::io::Write as _;
    let opened = open(trial::Device::Cuda(0));
    if let Err(why) = &opened {
        let _ = writeln!(std::io::stderr(), "skipped, no GPU: {why}");
    }
    opened.ok()
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize) -> Result<candle_core::Device> {
    candle_core::bail!("this program was built without CUDA; build it with `--features cuda`")
}

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: usize) -> Result<candle_core::Device> {
    let Some(needs) = needs() else { candle_core::bail!("this program has no kernels") };
    // asked first: a library that is missing ends the process at the first call of one of its functions
    if let Some(problem) = survey().problem_with(ordinal, needs) {
        candle_core::bail!("{problem}");
    }
    crate::ops::cuda::device::open(ordinal)
}

/// Bytes a device's tensors held at most since [`reset_peak_memory`]; nothing for the CPU, where
/// [`replica_core::memory`] counts.
pub fn peak_memory(device: &candle_core::Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(device) = device {
        return crate::ops::cuda::device::peak_memory(device).ok();
    }
    let _ = device;
    None
}

/// Starts a new measurement of [`peak_memory`].
pub fn reset_peak_memory(device: &candle_core::Device) {
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(device) = device {
        crate::ops::cuda::device::reset_peak_memory(device);
    }
    let _ = device;
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: Needs = Needs { compute_cap: 80, cuda: 13_000 };

    fn machine() -> Survey {
        let gpu = Gpu { name: "GPU".to_owned(), compute_cap: 90, memory: 1 << 36 };
        Survey {
            driver: Some(13_000),
            gpus: vec![gpu],
            libraries: vec!["libcublas.so.13", "libcurand.so.10"],
            problem: None,
        }
    }

    #[test]
    fn a_complete_machine_has_no_problem() {
        assert_eq!(machine().problem_with(0, NEEDS), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let cases: [(Survey, usize, &str); 5] = [
            (Survey { driver: None, ..machine() }, 0, "no driver was found"),
            (Survey { driver: Some(12_040), ..machine() }, 0, "the driver knows CUDA 12.4"),
            (machine(), 1, "no GPU number 1"),
            (
                Survey { libraries: vec!["libcublas.so.12"], ..machine() },
                0,
                "libcublas.so.13 does not load (found: libcublas.so.12)",
            ),
            (
                Survey {
                    gpus: vec![Gpu { name: "V100".to_owned(), compute_cap: 70, memory: 0 }],
                    ..machine()
                },
                0,
                "V100 has compute capability 7.0",
            ),
        ];
        for (survey, ordinal, expected) in cases {
            let problem = survey.problem_with(ordinal, NEEDS).unwrap();
            assert!(problem.contains(expected), "{problem}");
        }
    }

    /// On whatever machine the tests run: an answer, never a crash.
    #[test]
    fn a_survey_is_consistent() {
        let survey = survey();
        assert!(survey.driver.is_some() || survey.problem.is_some());
        assert!(survey.gpus.is_empty() || survey.driver.is_some());
    }
}
