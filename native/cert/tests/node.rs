//! `ca`, `node` and `renew` as their users call them.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use support::{Lab, fails, mode, names, ok, openssl, says};

const NODE_FILES: [&str; 4] = ["ca.pem", "cert.pem", "dist_tls.conf", "key.pem"];

fn text(cert: &str) -> String {
    openssl(&["x509", "-in", cert, "-noout", "-text"])
}

fn verify(lab: &Lab, node: &str) {
    let (ca, cert) = (lab.path("ca/ca.pem"), lab.path(&format!("{node}/cert.pem")));
    openssl(&["verify", "-x509_strict", "-CAfile", &ca, &cert]);
}

/// The public half of a key, and that of a certificate.
fn public_keys(dir: &str) -> (String, String) {
    let key = openssl(&["pkey", "-in", &format!("{dir}/key.pem"), "-pubout"]);
    let cert = openssl(&[
        "x509",
        "-in",
        &format!("{dir}/cert.pem"),
        "-noout",
        "-pubkey",
    ]);
    (key, cert)
}

fn serial(dir: &str) -> String {
    openssl(&[
        "x509",
        "-in",
        &format!("{dir}/cert.pem"),
        "-noout",
        "-serial",
    ])
}

#[test]
fn an_authority_is_two_files_with_the_name_and_the_days_it_was_given() {
    let lab = Lab::new();
    let dir = lab.path("other");
    let printed = ok(&["ca", &dir, "--name", "Example cluster", "--days", "100"]);
    assert_eq!(printed, format!("{dir}/ca.pem\n"));
    assert_eq!(names(&dir), ["ca-key.pem", "ca.pem"]);
    assert_eq!(mode(format!("{dir}/ca-key.pem")), 0o600);
    let ca = format!("{dir}/ca.pem");
    says(
        &text(&ca),
        &[
            "CN = Example cluster",
            "CA:TRUE, pathlen:0",
            "Certificate Sign, CRL Sign",
        ],
    );
    let end = |days: &str| {
        Command::new("openssl")
            .args(["x509", "-in", &ca, "-noout", "-checkend", days])
            .status()
            .unwrap()
            .success()
    };
    assert!(end("8553600") && !end("8726400"), "99 days, 101 days");
}

#[test]
fn an_authority_is_not_replaced_without_force() {
    let lab = Lab::new();
    let before = fs::read(lab.path("ca/ca-key.pem")).unwrap();
    says(
        &fails(1, &["ca", &lab.path("ca")]),
        &["ca-key.pem exists already", "--force"],
    );
    assert_eq!(fs::read(lab.path("ca/ca-key.pem")).unwrap(), before);
    ok(&["ca", &lab.path("ca"), "--force"]);
    assert_ne!(fs::read(lab.path("ca/ca-key.pem")).unwrap(), before);
    assert_eq!(names(lab.path("ca")), ["ca-key.pem", "ca.pem"]);
}

#[test]
fn a_certificate_names_its_nodes_their_hosts_and_the_extra_hosts() {
    let lab = Lab::new();
    let hosts = ["--host", "10.0.0.7", "--host", "*.example.org"];
    lab.node(
        "n",
        &[&["a@h.example.org", "b@h.example.org", "c@::1"], &hosts[..]].concat(),
    );
    assert_eq!(names(lab.path("n")), NODE_FILES);
    verify(&lab, "n");
    let (cert, key) = (lab.path("n/cert.pem"), lab.path("n/key.pem"));
    says(
        &text(&cert),
        &[
            "Subject: CN = a@h.example.org\n",
            "DNS:h.example.org, IP Address:0:0:0:0:0:0:0:1, IP Address:10.0.0.7, DNS:*.example.org, \
             URI:erlang:a@h.example.org, URI:erlang:b@h.example.org, URI:erlang:c@::1\n",
            "TLS Web Server Authentication, TLS Web Client Authentication",
            "CA:FALSE",
        ],
    );
    assert_eq!((mode(&cert), mode(&key)), (0o644, 0o600));
    let read = |file: &str| fs::read(lab.path(file)).unwrap();
    assert_eq!(read("n/ca.pem"), read("ca/ca.pem"));
    says(
        &String::from_utf8(read("n/dist_tls.conf")).unwrap(),
        &[&key, &cert, &lab.path("n/ca.pem")],
    );
}

#[test]
fn every_kind_of_key_makes_a_certificate_of_its_kind_and_is_renewed_as_one() {
    let kinds = [
        ("ecdsa", "prime256v1"),
        ("rsa", "Public-Key: (3072 bit)"),
        ("ed25519", "ED25519"),
    ];
    let lab = Lab::new();
    for (kind, shown) in kinds {
        lab.node(kind, &["a@localhost", "--key", kind]);
        for _ in ["new", "renewed"] {
            verify(&lab, kind);
            says(&text(&lab.path(&format!("{kind}/cert.pem"))), &[shown]);
            let (key, cert) = public_keys(&lab.path(kind));
            assert_eq!(key, cert);
            ok(&["renew", &lab.path(kind), "--ca", &lab.path("ca")]);
        }
    }
}

#[test]
fn the_common_name_fits_what_x509_allows() {
    let lab = Lab::new();
    let host = format!("{}.example.org", "h".repeat(60));
    lab.node("long", &[&format!("short@{host}")]);
    says(
        &text(&lab.path("long/cert.pem")),
        &["CN = short\n", &format!("DNS:{host}")],
    );
    lab.node("named", &["a@b", "--name", "Some node"]);
    says(&text(&lab.path("named/cert.pem")), &["CN = Some node\n"]);
    let long = "n".repeat(65);
    let args = [
        "node",
        &lab.path("x"),
        "a@b",
        "--ca",
        &lab.path("ca"),
        "--name",
        &long,
    ];
    says(&fails(2, &args), &["1 to 64 bytes"]);
}

#[test]
fn names_that_no_node_and_no_host_can_have_are_refused() {
    let lab = Lab::new();
    let (dir, ca) = (lab.path("x"), lab.path("ca"));
    let wrong = [
        ("a", "no @"),
        ("@h", "letters, digits"),
        ("a b@h", "letters, digits"),
        ("ä@h", "letters, digits"),
        ("a@", "no host name"),
        ("a@h h", "no host name"),
        ("a@*.example.org", "--host"),
    ];
    for (node, sentence) in wrong {
        says(
            &fails(2, &["node", &dir, node, "--ca", &ca]),
            &[node, sentence],
        );
    }
    says(
        &fails(2, &["node", &dir, "a@h", "--ca", &ca, "--host", "h,i"]),
        &["no host name"],
    );
    assert_eq!(names(lab.dir()), ["ca"]);
}

#[test]
fn what_is_no_authority_signs_nothing_and_says_why() {
    let lab = Lab::new();
    lab.node("n", &["a@h"]);
    ok(&["ca", &lab.path("other")]);
    let signs = |ca: &str| fails(1, &["node", &lab.path("x"), "a@h", "--ca", &lab.path(ca)]);
    says(&signs("absent"), &["ca.pem", "--ca wants"]);
    fs::copy(lab.path("n/ca.pem"), lab.path("other/ca.pem")).unwrap();
    says(
        &signs("other"),
        &["ca-key.pem", "not the key of", "made together"],
    );
    fs::copy(lab.path("n/cert.pem"), lab.path("other/ca.pem")).unwrap();
    fs::copy(lab.path("n/key.pem"), lab.path("other/ca-key.pem")).unwrap();
    says(
        &signs("other"),
        &["other/ca.pem", "no authority's", "polydist-cert ca"],
    );
    fs::write(lab.path("other/ca-key.pem"), "nonsense").unwrap();
    says(&signs("other"), &["ca-key.pem", "no private key"]);
    fs::write(lab.path("other/ca.pem"), "nonsense").unwrap();
    says(&signs("other"), &["other/ca.pem", "no certificate"]);
    assert_eq!(names(lab.dir()), ["ca", "n", "other"]);
}

#[test]
fn a_certificate_that_outlives_its_authority_is_told_of() {
    let lab = Lab::new();
    ok(&["ca", &lab.path("short"), "--days", "10"]);
    let output = support::run(&["node", &lab.path("n"), "a@h", "--ca", &lab.path("short")]);
    assert!(output.status.success());
    says(
        &String::from_utf8(output.stderr).unwrap(),
        &["short/ca.pem ends in 10 days", "--days 10"],
    );
}

#[test]
fn a_set_is_written_whole_or_not_at_all() {
    let lab = Lab::new();
    let (dir, ca) = (lab.path("n"), lab.path("ca"));
    let node = ["node", dir.as_str(), "a@h", "--ca", &ca];
    fs::create_dir_all(lab.path("n/key.pem")).unwrap();
    says(
        &fails(1, &[&node[..], &["--force"]].concat()),
        &["n/key.pem", "directory is in the way"],
    );
    assert_eq!(names(&dir), ["key.pem"]);
    fs::remove_dir(lab.path("n/key.pem")).unwrap();
    fs::write(lab.path("n/dist_tls.conf"), "mine").unwrap();
    says(
        &fails(1, &node),
        &["dist_tls.conf exists already", "--force"],
    );
    assert_eq!(names(&dir), ["dist_tls.conf"]);
    fs::remove_file(lab.path("n/dist_tls.conf")).unwrap();
    // No byte more than a disk block can be written, as on a full disk.
    says(
        &on_a_full_disk(&node),
        &["cannot write", "n/ca.pem", "nothing of the set was changed"],
    );
    assert_eq!(names(&dir), [""; 0]);
    let file = lab.path("ca/ca.pem/n");
    says(
        &fails(1, &["node", &file, "a@h", "--ca", &ca]),
        &["cannot write", &file],
    );
}

fn on_a_full_disk(args: &[&str]) -> String {
    let tool = env!("CARGO_BIN_EXE_polydist-cert");
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "sh", tool])
        .args(args)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_renewed_certificate_has_the_names_and_nothing_else_of_the_old_one() {
    let lab = Lab::new();
    lab.node(
        "n",
        &[
            "a@h", "b@h", "--host", "10.0.0.7", "--name", "The node", "--days", "5",
        ],
    );
    let dir = lab.path("n");
    let san = || {
        openssl(&[
            "x509",
            "-in",
            &lab.path("n/cert.pem"),
            "-noout",
            "-ext",
            "subjectAltName",
            "-subject",
        ])
    };
    let (before, key, old_serial) = (san(), public_keys(&dir), serial(&dir));
    assert_eq!(
        ok(&["renew", &dir, "--ca", &lab.path("ca")]),
        format!("{dir}/cert.pem\n")
    );
    verify(&lab, "n");
    assert_eq!(san(), before);
    let renewed = public_keys(&dir);
    assert_ne!(renewed, key);
    assert_eq!(renewed.0, renewed.1);
    assert_ne!(serial(&dir), old_serial);
    assert_eq!(names(&dir), NODE_FILES);
    assert_eq!(
        (mode(lab.path("n/key.pem")), mode(lab.path("n/cert.pem"))),
        (0o600, 0o644)
    );
    says(&ok(&["show", &dir]), &["365 days left"]);
}

#[test]
fn a_kept_key_gets_another_certificate_of_another_serial_number() {
    let lab = Lab::new();
    lab.node("n", &["a@h"]);
    let dir = lab.path("n");
    let (key, old_serial) = (fs::read(lab.path("n/key.pem")).unwrap(), serial(&dir));
    ok(&["renew", &dir, "--ca", &lab.path("ca"), "--keep-key"]);
    assert_eq!(fs::read(lab.path("n/key.pem")).unwrap(), key);
    assert_ne!(serial(&dir), old_serial);
    let (key, cert) = public_keys(&dir);
    assert_eq!(key, cert);
}

#[test]
fn what_cannot_be_renewed_stays_as_it_is() {
    let lab = Lab::new();
    lab.node("n", &["a@h"]);
    ok(&["ca", &lab.path("other")]);
    let files = || NODE_FILES.map(|name| fs::read(lab.path("n").to_owned() + "/" + name).unwrap());
    let renew = |ca: &str| {
        [
            "renew".to_owned(),
            lab.path("n"),
            "--ca".into(),
            lab.path(ca),
        ]
    };
    let renew = |ca: &str| fails(1, &renew(ca).each_ref().map(String::as_str));
    let before = files();
    says(&renew("other"), &["n/ca.pem", "append", "every node"]);
    assert_eq!(files(), before);
    let full = on_a_full_disk(&["renew", &lab.path("n"), "--ca", &lab.path("ca")]);
    says(&full, &["cannot write", "n/key.pem"]);
    assert_eq!(files(), before);
    assert_eq!(names(lab.path("n")), NODE_FILES);
    let key = lab.path("n/key.pem");
    let plain = fs::read(&key).unwrap();
    let encrypted = lab.path("encrypted.pem");
    let args = ["-in", &key, "-out", &encrypted, "-passout", "pass:secret"];
    openssl(&[&["pkcs8", "-topk8"], &args[..]].concat());
    fs::copy(&encrypted, &key).unwrap();
    says(&renew("ca"), &["n/key.pem", "encrypted"]);
    fs::write(&key, plain).unwrap();
    fs::remove_file(lab.path("n/cert.pem")).unwrap();
    says(&renew("ca"), &["n/cert.pem", "renew wants a directory"]);
}

#[test]
fn a_key_that_others_could_read_is_not_left_so_and_that_is_said() {
    let lab = Lab::new();
    lab.node("n", &["a@h"]);
    let key = lab.path("n/key.pem");
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    let output = support::run(&["renew", &lab.path("n"), "--ca", &lab.path("ca")]);
    assert!(output.status.success());
    says(
        &String::from_utf8(output.stderr).unwrap(),
        &["mode 0640", "0600"],
    );
    assert_eq!(mode(&key), 0o600);
}

#[test]
fn a_symbolic_link_to_a_key_stays_one() {
    let lab = Lab::new();
    lab.node("n", &["a@h"]);
    let (link, file) = (lab.path("n/key.pem"), lab.path("secret.pem"));
    fs::rename(&link, &file).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let before = fs::read(&file).unwrap();
    ok(&["renew", &lab.path("n"), "--ca", &lab.path("ca")]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_ne!(fs::read(&file).unwrap(), before);
    assert_eq!(mode(&file), 0o600);
}

#[test]
fn who_reads_while_a_certificate_is_renewed_reads_whole_files() {
    let lab = Lab::new();
    lab.node("n", &["a@h"]);
    let done = AtomicBool::new(false);
    let whole = |name: &str| {
        let text = fs::read_to_string(lab.path(name)).unwrap();
        text.starts_with("-----BEGIN ") && text.ends_with("-----\n")
    };
    std::thread::scope(|threads| {
        let reader = threads.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                assert!(whole("n/cert.pem") && whole("n/key.pem"));
                reads += 1;
            }
            reads
        });
        for _ in 0..20 {
            ok(&["renew", &lab.path("n"), "--ca", &lab.path("ca")]);
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 20);
    });
}

#[test]
fn a_key_with_a_passphrase_is_encrypted_stays_so_and_opens_with_it() {
    let lab = Lab::new();
    fs::write(lab.path("pass"), "open sesame\nmore\n").unwrap();
    fs::write(lab.path("wrong"), "close sesame\n").unwrap();
    let pass = ["--passphrase-file".to_owned(), lab.path("pass")];
    let pass = pass.each_ref().map(String::as_str);
    let opens = || {
        let pass = format!("file:{}", lab.path("pass"));
        let key = openssl(&[
            "pkey",
            "-in",
            &lab.path("n/key.pem"),
            "-passin",
            &pass,
            "-pubout",
        ]);
        let cert = openssl(&["x509", "-in", &lab.path("n/cert.pem"), "-noout", "-pubkey"]);
        assert_eq!(key, cert);
        key
    };
    for kind in ["ecdsa", "rsa", "ed25519"] {
        lab.node(
            "n",
            &[&["a@h", "--force", "--key", kind], &pass[..]].concat(),
        );
        let text = fs::read_to_string(lab.path("n/key.pem")).unwrap();
        assert!(
            text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"),
            "{text}"
        );
        assert_eq!(mode(lab.path("n/key.pem")), 0o600);
        assert_eq!(mode(lab.path("n/dist_tls.conf")), 0o600, "for its password");
        let key = opens();
        let (dir, ca) = (lab.path("n"), lab.path("ca"));
        let renew = ["renew", dir.as_str(), "--ca", &ca];
        says(
            &fails(1, &renew),
            &["n/key.pem", "encrypted", "--passphrase-file"],
        );
        let another = lab.path("wrong");
        let wrong = [&renew[..], &["--passphrase-file", &another]].concat();
        says(&fails(1, &wrong), &["n/key.pem", "not that of the key"]);
        ok(&[&renew[..], &pass[..], &["--keep-key"]].concat());
        assert_eq!(opens(), key);
        ok(&[&renew[..], &pass[..]].concat());
        assert_ne!(opens(), key);
    }
}

#[test]
fn a_passphrase_is_not_empty_and_comes_from_one_place() {
    let lab = Lab::new();
    fs::write(lab.path("empty"), "\n").unwrap();
    let (dir, ca, empty) = (lab.path("n"), lab.path("ca"), lab.path("empty"));
    let node = |more: &[&str], status: i32| {
        fails(
            status,
            &[&["node", &dir, "a@h", "--ca", &ca], more].concat(),
        )
    };
    says(
        &node(&["--passphrase-file", &empty], 1),
        &["empty: the passphrase is empty"],
    );
    says(
        &node(&["--passphrase-file", &lab.path("absent")], 1),
        &["cannot read", "absent"],
    );
    says(
        &node(&["--passphrase-env", "POLYDIST_NO_SUCH_THING"], 1),
        &["POLYDIST_NO_SUCH_THING"],
    );
    says(
        &node(
            &["--passphrase-env", "HOME", "--passphrase-file", &empty],
            2,
        ),
        &["cannot be used with"],
    );
    let output = Command::new(env!("CARGO_BIN_EXE_polydist-cert"))
        .args(["node", &dir, "a@h", "--ca", &ca, "--passphrase-env", "WORD"])
        .env("WORD", "open sesame")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    openssl(&[
        "pkey",
        "-in",
        &lab.path("n/key.pem"),
        "-passin",
        "pass:open sesame",
        "-noout",
    ]);
}
