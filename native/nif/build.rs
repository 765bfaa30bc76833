//! Link options of the library.

fn main() {
    // The VM may unload a library; ours has threads that must never lose their code.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rerun-if-changed=build.rs");
}
