//! What only Unix domain sockets have: a path, in a directory that must be safe.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use polydist_transport::{Address, Error, Kind};
use rustix::io::Errno;
use support::{Place, uds};

fn path(place: &Place) -> PathBuf {
    place.address.path().unwrap().to_owned()
}

fn at(path: &Path) -> Address {
    Address::Local(path.as_os_str().as_bytes().to_vec())
}

fn refused(place: &Place) -> Error {
    place.open().unwrap_err()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_directory_is_made_private_and_the_socket_too() {
    let mut place = uds();
    let listener = place.open().unwrap();
    assert_eq!(mode(path(&place).parent().unwrap()), 0o700);
    assert_eq!(mode(&path(&place)), 0o600);
    drop(listener);
    assert!(!path(&place).exists());
    place.listen.mode = 0o660;
    let _listener = place.open().unwrap();
    assert_eq!(mode(&path(&place)), 0o660);
}

#[tokio::test]
async fn a_directory_that_others_can_write_to_is_refused() {
    let place = uds();
    let directory = path(&place).parent().unwrap().to_owned();
    fs::create_dir(&directory).unwrap();
    for mode in [0o770, 0o707, 0o1777] {
        fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
        let error = refused(&place);
        assert_eq!(error.kind(), Kind::UnsafeDirectory);
        assert!(error.to_string().contains("others can write"), "{error}");
    }
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
    place.open().unwrap();
}

#[tokio::test]
async fn a_directory_that_is_a_link_a_file_or_missing_twice_over_is_refused() {
    let mut place = uds();
    let directory = path(&place).parent().unwrap().to_owned();
    symlink("/tmp", &directory).unwrap();
    assert!(refused(&place).to_string().contains("symbolic link"));
    fs::remove_file(&directory).unwrap();
    fs::write(&directory, "").unwrap();
    assert!(refused(&place).to_string().contains("no directory"));
    fs::remove_file(&directory).unwrap();
    place.address = at(&directory.join("deeper/node"));
    assert_eq!(refused(&place).kind(), Kind::Os(Errno::NOENT));
}

#[tokio::test]
async fn the_socket_of_a_dead_node_is_replaced() {
    let place = uds();
    fs::create_dir(path(&place).parent().unwrap()).unwrap();
    drop(UnixListener::bind(path(&place)).unwrap()); // leaves its path, as a killed node does
    assert!(path(&place).exists());
    let (listener, mut incoming) = place.open().unwrap();
    place.pair(&listener, &mut incoming).await;
}

#[tokio::test]
async fn the_socket_of_a_live_program_is_not() {
    let place = uds();
    fs::create_dir(path(&place).parent().unwrap()).unwrap();
    let _live = UnixListener::bind(path(&place)).unwrap();
    let error = refused(&place);
    assert_eq!(error.kind(), Kind::Os(Errno::ADDRINUSE));
    assert!(path(&place).exists());
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let place = uds();
    fs::create_dir(path(&place).parent().unwrap()).unwrap();
    fs::write(path(&place), "precious").unwrap();
    assert_eq!(refused(&place).kind(), Kind::Os(Errno::EXIST));
    assert_eq!(fs::read(path(&place)).unwrap(), b"precious");
}

#[tokio::test]
async fn closing_leaves_a_path_that_another_has_taken() {
    let place = uds();
    let (listener, _incoming) = place.open().unwrap();
    fs::remove_file(path(&place)).unwrap();
    let _other = UnixListener::bind(path(&place)).unwrap();
    listener.close();
    assert!(path(&place).exists());
}

#[tokio::test]
async fn paths_that_no_socket_can_have_are_refused() {
    let mut place = uds();
    let directory = path(&place).parent().unwrap().to_owned();
    place.address = at(&directory.join("n".repeat(107)));
    let error = refused(&place);
    assert_eq!(error.kind(), Kind::TooLong);
    assert!(error.to_string().contains("at most 107"), "{error}");
    for path in ["relative/node", "", "/tmp/a\0b"] {
        place.address = at(Path::new(path));
        assert_eq!(refused(&place).kind(), Kind::BadOption, "{path:?}");
    }
}
