//! `crl` as its users call it.

mod support;

use std::fs;
use std::process::Command;

use support::{Lab, fails, names, ok, openssl, says};

/// Whether openssl takes a node's certificate when it looks at the list.
fn accepted(lab: &Lab, node: &str) -> bool {
    let output = Command::new("openssl")
        .args(["verify", "-crl_check", "-CAfile", &lab.path("ca/ca.pem")])
        .args(["-CRLfile", &lab.path("ca/crl.pem")])
        .arg(lab.path(&format!("{node}/cert.pem")))
        .output()
        .unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(
        output.status.success() || text.contains("certificate revoked"),
        "{text}"
    );
    output.status.success()
}

fn number(lab: &Lab) -> String {
    openssl(&[
        "crl",
        "-in",
        &lab.path("ca/crl.pem"),
        "-noout",
        "-crlnumber",
    ])
}

#[test]
fn revoked_certificates_are_not_accepted_and_the_list_remembers_them() {
    let lab = Lab::new();
    for node in ["a", "b", "c"] {
        lab.node(node, &["n@h"]);
    }
    let crl = |args: &[&str]| ok(&[&["crl", &lab.path("ca")], args].concat());
    assert_eq!(crl(&[]), lab.path("ca/crl.pem\n"));
    assert!(accepted(&lab, "a") && accepted(&lab, "b"));
    says(
        &ok(&["show", &lab.path("ca")]),
        &[
            "ca/crl.pem\n  list by",
            "number       1\n",
            "revoked      none",
        ],
    );
    crl(&["--revoke", &lab.path("a")]);
    assert!(!accepted(&lab, "a") && accepted(&lab, "b"));
    crl(&[
        "--revoke",
        &lab.path("b/cert.pem"),
        &lab.path("a/cert.pem"),
        "--days",
        "7",
    ]);
    assert!(!accepted(&lab, "a") && !accepted(&lab, "b") && accepted(&lab, "c"));
    says(&number(&lab), &["3"]);
    let shown = ok(&["show", "--json", &lab.path("ca/crl.pem")]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown[0]["revoked"].as_array().unwrap().len(), 2);
    let good =
        shown[0]["next_update"].as_i64().unwrap() - shown[0]["this_update"].as_i64().unwrap();
    assert_eq!(good, 7 * 24 * 60 * 60);
    assert_eq!(names(lab.path("ca")), ["ca-key.pem", "ca.pem", "crl.pem"]);
}

#[test]
fn reasons_that_openssl_gave_stay_in_the_list() {
    let lab = Lab::new();
    lab.node("a", &["n@h"]);
    let config = format!(
        "[ca]\ndefault_ca=d\n[d]\ndatabase={}\ncrlnumber={}\ndefault_md=sha256\ndefault_crl_days=9\n",
        lab.path("index.txt"),
        lab.path("number")
    );
    fs::write(lab.path("ca.cnf"), config).unwrap();
    fs::write(lab.path("index.txt"), "").unwrap();
    fs::write(lab.path("number"), "0a\n").unwrap();
    let (cnf, cert, key) = (
        lab.path("ca.cnf"),
        lab.path("ca/ca.pem"),
        lab.path("ca/ca-key.pem"),
    );
    let ca = ["ca", "-config", &cnf, "-cert", &cert, "-keyfile", &key];
    openssl(
        &[
            &ca[..],
            &[
                "-revoke",
                &lab.path("a/cert.pem"),
                "-crl_reason",
                "keyCompromise",
            ],
        ]
        .concat(),
    );
    openssl(&[&ca[..], &["-gencrl", "-out", &lab.path("ca/crl.pem")]].concat());
    ok(&["crl", &lab.path("ca")]);
    assert!(!accepted(&lab, "a"));
    let text = openssl(&["crl", "-in", &lab.path("ca/crl.pem"), "-noout", "-text"]);
    says(
        &text,
        &[
            "Key Compromise",
            "X509v3 CRL Number: \n                11\n",
        ],
    );
}

#[test]
fn what_the_authority_did_not_sign_it_does_not_take_back() {
    let lab = Lab::new();
    ok(&["init", &lab.path("other"), "--host", "h"]);
    let crl = |args: &[&str]| fails(1, &[&["crl", &lab.path("ca")], args].concat());
    says(
        &crl(&["--revoke", &lab.path("other")]),
        &["other/cert.pem", "not signed by", "ca/ca.pem"],
    );
    says(
        &crl(&["--revoke", &lab.path("absent")]),
        &["cannot read", "absent"],
    );
    assert_eq!(names(lab.path("ca")), ["ca-key.pem", "ca.pem"]);
    ok(&["crl", &lab.path("other")]);
    fs::copy(lab.path("other/crl.pem"), lab.path("ca/crl.pem")).unwrap();
    says(&crl(&[]), &["ca/crl.pem", "not by", "move it away"]);
    fs::write(lab.path("ca/crl.pem"), "").unwrap();
    says(&crl(&[]), &["ca/crl.pem", "no list"]);
    says(&fails(1, &["crl", &lab.path("absent")]), &["absent/ca.pem"]);
}
