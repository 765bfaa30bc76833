//! `show` as its users call it.

mod support;

use std::fs;

use serde_json::Value;
use support::{Lab, fails, ok, openssl, says};

#[test]
fn a_directory_shows_its_certificate_and_its_authority() {
    let lab = Lab::new();
    lab.node(
        "n",
        &["a@h.example.org", "--host", "10.0.0.7", "--days", "90"],
    );
    let shown = ok(&["show", &lab.path("n")]);
    let fingerprint = openssl(&[
        "x509",
        "-in",
        &lab.path("n/cert.pem"),
        "-noout",
        "-fingerprint",
        "-sha256",
    ]);
    let serial = openssl(&["x509", "-in", &lab.path("n/cert.pem"), "-noout", "-serial"]);
    says(
        &shown,
        &[
            "n/cert.pem\n  subject      CN=a@h.example.org\n",
            "nodes        a@h.example.org\n",
            "hosts        h.example.org, 10.0.0.7\n",
            "90 days left",
            "ECDSA, P-256",
            "digitalSignature, serverAuth, clientAuth\n",
            "n/ca.pem\n  subject      CN=polydist authority",
            "authority, keyCertSign, cRLSign\n",
            fingerprint
                .trim()
                .split_once('=')
                .unwrap()
                .1
                .to_lowercase()
                .as_str(),
            serial
                .trim()
                .split_once('=')
                .unwrap()
                .1
                .to_lowercase()
                .as_str(),
        ],
    );
}

#[test]
fn json_says_the_same_for_programs() {
    let lab = Lab::new();
    lab.node("n", &["a@h", "--key", "rsa"]);
    let shown: Value =
        serde_json::from_str(&ok(&["show", "--json", &lab.path("n/cert.pem")])).unwrap();
    let cert = &shown[0];
    assert_eq!(shown.as_array().unwrap().len(), 1);
    assert_eq!(cert["nodes"], serde_json::json!(["a@h"]));
    assert_eq!(cert["hosts"], serde_json::json!(["h"]));
    assert_eq!(cert["key"], "RSA, 3072 bits");
    assert_eq!(cert["file"], lab.path("n/cert.pem"));
    let lasts = cert["not_after"].as_i64().unwrap() - cert["not_before"].as_i64().unwrap();
    assert_eq!(lasts, 366 * 24 * 60 * 60);
}

#[test]
fn several_files_der_and_certificates_that_ended_are_shown() {
    let lab = Lab::new();
    let old = lab.path("old");
    ok(&["init", &old, "--host", "h", "--days", "-2"]);
    let der = lab.path("cert.der");
    openssl(&[
        "x509",
        "-in",
        &format!("{old}/cert.pem"),
        "-outform",
        "DER",
        "-out",
        &der,
    ]);
    let shown = ok(&["show", &der, &lab.path("ca/ca.pem")]);
    says(&shown, &[&der, "ended\n", "ca/ca.pem"]);
}

#[test]
fn what_a_foreign_certificate_says_does_not_command_the_terminal() {
    let lab = Lab::new();
    let (cert, key) = (lab.path("c.pem"), lab.path("k.pem"));
    let subject = "/CN=a\u{1b}[31m/O=Org";
    let args = [
        "req", "-x509", "-newkey", "ed25519", "-nodes", "-utf8", "-subj", subject,
    ];
    openssl(&[&args[..], &["-keyout", &key, "-out", &cert]].concat());
    let shown = ok(&["show", &cert]);
    says(&shown, &["[31m", "O=Org", "Ed25519"]);
    assert!(!shown.contains('\u{1b}'));
}

#[test]
fn keys_and_what_cannot_be_read_are_errors_and_nothing_of_a_key_is_shown() {
    let lab = Lab::new();
    lab.node("n", &["a@h"]);
    let sentence = fails(1, &["show", &lab.path("n/key.pem")]);
    says(&sentence, &["n/key.pem", "no certificate"]);
    let key = fs::read_to_string(lab.path("n/key.pem")).unwrap();
    assert!(!sentence.contains(key.lines().nth(1).unwrap()));
    says(
        &fails(1, &["show", &lab.path("absent")]),
        &["cannot read", "absent"],
    );
    says(
        &fails(1, &["show", &lab.dir().display().to_string()]),
        &["neither cert.pem nor ca.pem nor crl.pem"],
    );
    let broken = lab.path("broken.pem");
    fs::write(
        &broken,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    says(
        &fails(1, &["show", &broken]),
        &["broken.pem", "no valid certificate"],
    );
    fs::write(&broken, "-----BEGIN CERTIFICATE-----\n").unwrap();
    says(
        &fails(1, &["show", &broken]),
        &["broken.pem", "no valid PEM"],
    );
    says(&fails(2, &["show"]), &["FILE|DIR"]);
}
