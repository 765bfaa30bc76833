//! What TLS can be configured with, and whom certificates are for.

mod support;

use polydist_transport::{
    Certificate, Contents, Identity, Kind, RevocationOptions, TlsConfig, TlsOptions, Version,
    is_for_node,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use support::Authority;

#[test]
fn configurations_that_cannot_work_name_the_option_and_the_cure() {
    let authority = Authority::new();
    let good = authority.issue(&["a"]);
    let other = authority.issue(&["a"]);
    let text = |text: &[u8]| Some(Contents::pem(text));
    let with = |change: &dyn Fn(&mut Identity)| {
        let mut options = good.clone();
        change(&mut options.identities[0]);
        options
    };
    let rooted = |roots| TlsOptions {
        roots,
        ..good.clone()
    };
    let garbled = b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    let cases = [
        (
            with(&|identity| identity.key = other.identities[0].key.clone()),
            "certfile and keyfile do not belong together",
        ),
        (with(&|identity| identity.key = None), "set keyfile"),
        (
            TlsOptions {
                identities: Vec::new(),
                ..good.clone()
            },
            "set certfile and keyfile",
        ),
        (
            with(&|identity| identity.key = text(b"nothing")),
            "BEGIN PRIVATE KEY",
        ),
        (
            with(&|identity| identity.cert = Contents::pem(b"nothing")),
            "certfile holds no certificate",
        ),
        (rooted(text(b"")), "cacertfile holds no certificate"),
        (rooted(None), "set cacertfile"),
        (rooted(text(garbled)), "cacertfile is no valid PEM"),
        (
            rooted(Some(Contents::der([b"nothing".to_vec()]))),
            "certificate 1 in cacerts cannot be used",
        ),
        (
            with(&|identity| identity.cert = Contents::der([b"nothing".to_vec()])),
            "cert cannot be used: the certificate is malformed",
        ),
    ];
    for (options, expected) in cases {
        refuses(&options, expected);
    }
}

/// The options with this file of `tests/keys` for a key, and a password.
fn with_key(options: &TlsOptions, key: &str, password: Option<&str>) -> TlsOptions {
    let mut options = options.clone();
    let identity = &mut options.identities[0];
    identity.key = Some(Contents::pem(file(key)));
    identity.password = password.map(|password| password.as_bytes().to_vec().into());
    options
}

fn file(name: &str) -> String {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys/");
    std::fs::read_to_string(dir.to_owned() + name).unwrap()
}

fn for_key(plain: &str) -> TlsOptions {
    let key = KeyPair::from_pem(&file(plain)).unwrap();
    Authority::new().issue_for(&key, &["a"], |_| ())
}

#[test]
fn keys_may_be_encrypted_as_openssl_does_it() {
    let good = for_key("plain.pem");
    for name in [
        "pkcs8-default.pem",
        "pbes2-aes-128-cbc.pem",
        "pbes2-des3.pem",
        "pbes2-sha1.pem",
        "scrypt.pem",
    ] {
        let options = with_key(&good, name, Some("secret"));
        TlsConfig::server(&options).unwrap_or_else(|error| panic!("{name}: {error}"));
        refuses(
            &with_key(&good, name, Some("guess")),
            "the password is wrong",
        );
        refuses(&with_key(&good, name, None), "is encrypted; set password");
    }
    let other = for_key("genpkey-plain.pem");
    TlsConfig::server(&with_key(&other, "genpkey.pem", Some("secret"))).unwrap();
    TlsConfig::server(&with_key(&good, "plain.pem", Some("not needed"))).unwrap();
    for name in ["pbes1.pem", "traditional.pem"] {
        let options = with_key(&good, name, Some("secret"));
        refuses(&options, "openssl pkcs8 -topk8 -v2 aes-256-cbc");
    }
}

#[test]
fn keys_may_be_in_any_common_format() {
    let der = |pem: &str| pem::parse_many(pem).unwrap().pop().unwrap().into_contents();
    for (plain, names) in [
        ("plain.pem", &["plain.pem", "sec1.pem"]),
        ("rsa.pem", &["rsa.pem", "rsa-pkcs1.pem"]),
    ] {
        let good = for_key(plain);
        for name in names {
            TlsConfig::server(&with_key(&good, name, None)).unwrap();
            let mut options = good.clone();
            options.identities[0].key = Some(Contents::der([der(&file(name))]));
            TlsConfig::server(&options).unwrap();
        }
    }
    let mut options = with_key(&for_key("plain.pem"), "plain.pem", Some("secret"));
    let encrypted = der(&file("pkcs8-default.pem"));
    options.identities[0].key = Some(Contents::der([encrypted]));
    TlsConfig::server(&options).unwrap();
    options.identities[0].key = Some(Contents::der([b"nothing".to_vec()]));
    refuses(&options, "key is no private key");
}

#[test]
fn certificate_and_key_may_be_in_one_file_beside_other_things() {
    let mut options = for_key("plain.pem");
    let Contents::Pem(cert) = options.identities[0].cert.clone() else {
        unreachable!("it was issued so")
    };
    let remarks = b"Bag Attributes\n    friendlyName: \xe9\n";
    for key in ["plain.pem", "sec1.pem"] {
        let key = file(key);
        let both = [remarks, &cert[..], remarks, key.as_bytes()].concat();
        options.identities[0].cert = Contents::pem(both);
        options.identities[0].key = None;
        TlsConfig::server(&options).unwrap();
    }
}

#[test]
fn which_of_several_certificates_is_wrong_is_said() {
    let mut options = for_key("plain.pem");
    let wrong = with_key(&options, "rsa.pem", None);
    options.identities.extend(wrong.identities);
    refuses(
        &options,
        "certificate 2 of certs_keys: certfile and keyfile do not belong",
    );
}

#[test]
fn names_of_ciphers_and_groups_that_do_not_exist_are_named() {
    let good = for_key("plain.pem");
    let with = |ciphers: Option<&[&str]>, groups: Option<&[&str]>| {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        TlsOptions {
            ciphers: ciphers.map(list),
            groups: groups.map(list),
            ..good.clone()
        }
    };
    refuses(
        &with(Some(&["TLS_NULL"]), None),
        "there is no cipher suite TLS_NULL; there are TLS_",
    );
    refuses(&with(Some(&[]), None), "no cipher suite is allowed");
    refuses(
        &with(None, Some(&["sect571r1"])),
        "there is no group sect571r1",
    );
    let mut old = with(Some(&["TLS_AES_128_GCM_SHA256"]), None);
    TlsConfig::server(&old).unwrap();
    old.versions = vec![Version::Tls12];
    refuses(&old, "do not work together");
}

#[test]
fn files_of_revocation_lists_that_cannot_be_used_are_counted() {
    let good = for_key("plain.pem");
    let with = |file: &[u8]| TlsOptions {
        revocation: Some(RevocationOptions {
            files: vec![file.to_vec()],
            ..RevocationOptions::default()
        }),
        ..good.clone()
    };
    refuses(
        &with(b"nothing"),
        "revocation list (CRL) file 1: it is malformed",
    );
    let garbled = b"-----BEGIN X509 CRL-----\n!!\n-----END X509 CRL-----\n";
    refuses(&with(garbled), "is no valid PEM file");
}

fn refuses(options: &TlsOptions, expected: &str) {
    let error = TlsConfig::server(options).unwrap_err();
    assert_eq!(error.kind(), Kind::Tls);
    assert!(error.to_string().contains(expected), "{expected}: {error}");
}

fn cert(common: &str, names: Vec<SanType>) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params.subject_alt_names = names;
    params.serial_number = Some(0x0a_bc_u64.into());
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().clone()
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

#[test]
fn a_certificate_is_for_the_nodes_of_its_hosts_and_those_in_its_uris() {
    let names = vec![
        dns("a.example"),
        dns("*.wild.example"),
        SanType::IpAddress([10, 0, 0, 1].into()),
        SanType::IpAddress("fd00::1".parse().unwrap()),
        uri("erlang:x@elsewhere"),
        uri("https://b.example"),
    ];
    let named = cert("common.example", names);
    for node in [
        "x@a.example",
        "y@A.EXAMPLE",
        "a.example",
        "x@b.wild.example",
        "x@10.0.0.1",
        "x@fd00::1",
        "x@elsewhere",
    ] {
        assert!(is_for_node(&named, node), "{node}");
    }
    for node in [
        "",
        "@",
        "x@",
        "x@b.example",
        "y@elsewhere",
        "elsewhere",
        "x@elsewhere.",
        "x@wild.example",
        "x@c.b.wild.example",
        "x@10.0.0.2",
        "x@common.example",
        "x@a.example@b",
        "x@*.wild.example",
        "x@\u{e9}",
    ] {
        assert!(!is_for_node(&named, node), "{node}");
    }
    let facts = Certificate::of(&named).unwrap();
    let hosts = ["a.example", "*.wild.example", "10.0.0.1", "fd00::1"];
    assert_eq!(facts.hosts, hosts);
    assert_eq!(facts.nodes, ["x@elsewhere"]);
    assert_eq!(facts.subject, "CN=common.example");
    assert_eq!(facts.serial, "0abc");

    let forged = cert("a\nforged", vec![dns("b\nforged")]);
    let facts = Certificate::of(&forged).unwrap();
    assert!(!facts.subject.contains('\n') && !facts.hosts[0].contains('\n'));

    let common = cert("common.example", vec![uri("erlang:x@elsewhere")]);
    assert!(is_for_node(&common, "x@common.example") && is_for_node(&common, "x@elsewhere"));
    assert!(!is_for_node(&common, "y@elsewhere"));
    assert_eq!(Certificate::of(&common).unwrap().hosts, ["common.example"]);
}

#[test]
fn malformed_certificates_are_for_nobody_and_harm_nothing() {
    let good = cert(
        "a",
        vec![
            dns("a"),
            SanType::IpAddress([10, 0, 0, 1].into()),
            uri("erlang:x@b"),
        ],
    );
    for len in 0..good.len() {
        let cut = CertificateDer::from(&good[..len]);
        assert!(!is_for_node(&cut, "x@b") && Certificate::of(&cut).is_err());
    }
    let longer = CertificateDer::from([&good[..], b"\0"].concat());
    assert!(!is_for_node(&longer, "x@b") && Certificate::of(&longer).is_err());
    for at in 0..good.len() {
        for flip in [0x01, 0x20, 0x80, 0xff] {
            let mut changed = good.to_vec();
            changed[at] ^= flip;
            let changed = CertificateDer::from(changed);
            // Whatever it says now, it does not name what was nowhere in it.
            assert!(!is_for_node(&changed, "x@unrelated.example"));
            let _ = Certificate::of(&changed);
        }
    }
}
