//! `polydist-cert`: certificates for the nodes of a cluster, and the file that tells Erlang of them.
//!
//! ```text
//! polydist-cert ca /etc/cluster/ca                                 an authority
//! polydist-cert node /etc/cluster/a a@a.example.org --ca /etc/cluster/ca
//! erl ... -proto_dist polydist_tls -ssl_dist_optfile /etc/cluster/a/dist_tls.conf
//! polydist-cert renew /etc/cluster/a --ca /etc/cluster/ca
//! polydist-cert show /etc/cluster/a
//! polydist-cert crl /etc/cluster/ca --revoke /etc/cluster/a        crl.pem, without the node a
//! ```
//!
//! The same file works for stock `-proto_dist inet_tls`. Keys are never printed.

#![forbid(unsafe_code)]

mod crl;
mod error;
mod facts;
mod files;
mod issue;
mod make;
mod names;
mod output;
mod show;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Makes certificates for Erlang distribution over TLS.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes ca.pem, ca-key.pem, cert.pem, key.pem and dist_tls.conf into a directory.
    Init(make::Init),
    /// Makes a cluster's authority: ca.pem and ca-key.pem.
    Ca(make::Ca),
    /// Makes a node's certificate: cert.pem, key.pem, ca.pem and dist_tls.conf.
    Node(make::Node),
    /// Replaces a node's certificate and key by new ones with the same names.
    Renew(make::Renew),
    /// Takes certificates back: writes the authority's list of revoked ones, crl.pem.
    Crl(crl::Crl),
    /// Says what is in certificates and in lists of revoked ones.
    Show(show::Show),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Init(init) => make::init(&init),
        Command::Ca(ca) => make::ca(&ca),
        Command::Node(node) => make::node(&node),
        Command::Renew(renew) => make::renew(&renew),
        Command::Crl(crl) => crl::crl(&crl),
        Command::Show(show) => show::show(&show),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("polydist-cert: {error}");
            ExitCode::FAILURE
        }
    }
}
