//! Compiles the kernels for the CPU and launches them by name.

use std::collections::hash_map::DefaultHasher;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::Library;

/// The library of all kernels.
pub struct Emulator {
    library: Library,
}

type Launch = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    c_uint,
    usize,
    *mut *mut c_void,
    *const usize,
    usize,
) -> c_int;

impl Emulator {
    /// The kernels, compiled at the first call; nothing on a machine without a C++ compiler.
    pub fn get() -> Option<&'static Emulator> {
        static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
        EMULATOR.get_or_init(build).as_ref()
    }

    /// Runs a kernel on `grid` blocks of `threads` threads with `shared` bytes of dynamic shared memory.
    pub fn launch(
        &self,
        name: &str,
        grid: (usize, usize, usize),
        threads: usize,
        shared: usize,
        arguments: &[Argument],
    ) {
        let grid = [grid.0, grid.1, grid.2].map(|n| c_uint::try_from(n).unwrap());
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::pointer).collect();
        let sizes: Vec<usize> = arguments.iter().map(Argument::size).collect();
        let c_name = CString::new(name).unwrap();
        // SAFETY: the function has this signature (launch.cpp), which checks number and sizes of the arguments;
        // buffers are borrowed by `arguments`, and a kernel writes within them, which is what is tested.
        let failed = unsafe {
            self.library.get::<Launch>(b"emulator_launch").unwrap()(
                c_name.as_ptr(),
                grid.as_ptr(),
                threads as c_uint,
                shared,
                pointers.as_mut_ptr(),
                sizes.as_ptr(),
                sizes.len(),
            )
        };
        if failed != 0 {
            // SAFETY: it returns a string that lives until the thread's next launch.
            let error = unsafe {
                let error = self.library.get::<unsafe extern "C" fn() -> *const c_char>(b"emulator_error");
                CStr::from_ptr(error.unwrap()()).to_string_lossy().into_owned()
            };
            panic!("{name}: {error}");
        }
    }

    /// Calls `test` twice: threads of a block run from first to last, then from last to first.
    pub fn in_both_orders(test: impl Fn(&Emulator)) {
        let Some(emulator) = Emulator::get() else { return };
        for reversed in [0, 1] {
            // SAFETY: the function has this signature.
            unsafe {
                emulator.library.get::<unsafe extern "C" fn(c_int)>(b"emulator_reverse").unwrap()(reversed)
            };
            test(emulator);
        }
    }
}

/// An argument of a kernel: a buffer or a number.
pub enum Argument<'a> {
    Buffer(*mut c_void, std::marker::PhantomData<&'a ()>),
    I32(i32),
    I64(i64),
    U32(u32),
    U64(u64),
    F32(f32),
    F64(f64),
}

/// A pointer to nothing.
pub const NULL: Argument = Argument::Buffer(std::ptr::null_mut(), std::marker::PhantomData);

impl Argument<'_> {
    fn pointer(&self) -> *mut c_void {
        match self {
            Self::Buffer(p, _) => std::ptr::from_ref(p) as *mut c_void,
            Self::I32(v) => std::ptr::from_ref(v) as *mut c_void,
            Self::I64(v) => std::ptr::from_ref(v) as *mut c_void,
            Self::U32(v) => std::ptr::from_ref(v) as *mut c_void,
            Self::U64(v) => std::ptr::from_ref(v) as *mut c_void,
            Self::F32(v) => std::ptr::from_ref(v) as *mut c_void,
            Self::F64(v) => std::ptr::from_ref(v) as *mut c_void,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Buffer(..) | Self::I64(_) | Self::U64(_) | Self::F64(_) => 8,
            Self::I32(_) | Self::U32(_) | Self::F32(_) => 4,
        }
    }
}

impl<'a, T> From<&'a [T]> for Argument<'a> {
    fn from(data: &'a [T]) -> Self {
        Self::Buffer(data.as_ptr() as *mut c_void, std::marker::PhantomData)
    }
}

impl<'a, T> From<&'a Vec<T>> for Argument<'a> {
    fn from(data: &'a Vec<T>) -> Self {
        data.as_slice().into()
    }
}

impl<'a, T> From<&'a mut Vec<T>> for Argument<'a> {
    fn from(data: &'a mut Vec<T>) -> Self {
        Self::Buffer(data.as_mut_ptr().cast(), std::marker::PhantomData)
    }
}

impl<'a, T> From<&'a mut [T]> for Argument<'a> {
    fn from(data: &'a mut [T]) -> Self {
        Self::Buffer(data.as_mut_ptr().cast(), std::marker::PhantomData)
    }
}

macro_rules! impl_from {
    ($($type:ty => $variant:ident),*) => {$(
        impl From<$type> for Argument<'_> {
            fn from(v: $type) -> Self {
                Self::$variant(v)
            }
        }
    )*};
}
impl_from!(i32 => I32, i64 => I64, u32 => U32, u64 => U64, f32 => F32, f64 => F64);

/// `launch!(emulator, name, grid, threads, shared; arguments..)`.
macro_rules! launch {
    ($emulator:expr, $name:expr, $grid:expr, $threads:expr, $shared:expr; $($argument:expr),* $(,)?) => {
        $emulator.launch(&$name, $grid, $threads, $shared, &[$($crate::emulator::Argument::from($argument)),*])
    };
}
pub(crate) use launch;

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

/// Compiles what is not yet compiled: an object a kernel file, named by a hash of all that goes into it.
fn build() -> Option<Emulator> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let version = match Command::new(&compiler).arg("--version").output() {
        Ok(output) => output.stdout,
        Err(error) => {
            eprintln!(
                "CUDA kernels are NOT tested: `{compiler}` does not run ({error}); install a C++ compiler"
            );
            return None;
        }
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (kernels, tests) = (root.join("src/ops/cuda"), root.join("tests/kernels"));
    let mut flags = vec!["-O2", "-g1", "-std=c++17", "-fPIC", "-Wall", "-Wno-unknown-pragmas"];
    // for example -fsanitize=address,undefined with the sanitisers' libraries in LD_PRELOAD and --test-threads=1
    let more = std::env::var("EMULATOR_FLAGS").unwrap_or_default();
    flags.extend(more.split_whitespace());

    let mut sources = files(&kernels, "cu");
    sources.push(tests.join("launch.cpp"));
    let headers: Vec<Vec<u8>> = files(&kernels, "cuh")
        .into_iter()
        .chain([tests.join("emulator.h")])
        .map(|header| fs::read(header).unwrap())
        .collect();
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let name_of = |source: &PathBuf| {
        let mut hash = DefaultHasher::new();
        (&version, &flags, &headers, fs::read(source).unwrap()).hash(&mut hash);
        let stem = source.file_stem().unwrap().to_string_lossy();
        out.join(format!("{stem}-{:016x}.o", hash.finish()))
    };
    let objects: Vec<PathBuf> = sources.iter().map(name_of).collect();
    let run = |command: &mut Command| {
        // a preloaded sanitiser is for the kernels
        let output = command.env_remove("LD_PRELOAD").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    // a temporary name, then a rename: test processes may build at the same time
    let temporary = |path: &Path| path.with_extension(format!("{}.tmp", std::process::id()));
    let queue = std::sync::Mutex::new(sources.iter().zip(&objects));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some((source, object)) = queue.lock().unwrap().next() else { break };
                    if object.exists() {
                        continue;
                    }
                    let mut command = Command::new(&compiler);
                    command.args(&flags).args(["-include", "emulator.h", "-c", "-x", "c++"]).arg(source);
                    command.arg("-I").arg(&tests).arg("-I").arg(&kernels).arg("-o").arg(temporary(object));
                    run(&mut command);
                    fs::rename(temporary(object), object).unwrap();
                }
            });
        }
    });
    let mut hash = DefaultHasher::new();
    objects.hash(&mut hash);
    let library = out.join(format!("kernels-{:016x}.so", hash.finish()));
    if !library.exists() {
        run(Command::new(&compiler)
            .args(&flags)
            .arg("-shared")
            .args(&objects)
            .arg("-o")
            .arg(temporary(&library)));
        fs::rename(temporary(&library), &library).unwrap();
    }
    // SAFETY: loading it runs only the registration of the kernels.
    Some(Emulator { library: unsafe { Library::new(library) }.unwrap() })
}
