//! `polydist-cert`: certificates for the nodes of a cluster, and the file that tells Erlang of them.
//!
//! ```text
//! polydist-cert init /etc/cluster/a --host a.example.org          a new authority and a certificate
//! polydist-cert init /etc/cluster/b --host b.example.org --ca /etc/cluster/a
//! erl ... -proto_dist polydist_tls -ssl_dist_optfile /etc/cluster/a/dist_tls.conf
//! ```
//!
//! The same file works for stock `-proto_dist inet_tls`. Keys are never printed.

#![forbid(unsafe_code)]

mod files;
mod issue;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

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
    Init(Init),
}

#[derive(Args)]
struct Init {
    /// The directory; made if absent.
    dir: PathBuf,
    /// A name or IP address that the node is reached by: what follows the @ in the node's name.
    #[arg(long = "host", value_name = "NAME", required = true)]
    hosts: Vec<String>,
    /// For how many days from now the certificate is valid; below zero, it has expired already.
    #[arg(long, value_name = "N", default_value_t = 365, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i64).range(-36500..=36500))]
    days: i64,
    /// The certificate's common name [default: the first host].
    #[arg(long, value_name = "COMMON")]
    name: Option<String>,
    /// Sign with the authority that an earlier init made in this directory. Its key stays there.
    #[arg(long, value_name = "DIR")]
    ca: Option<PathBuf>,
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0} exists already; choose another directory, or --force to replace it")]
    Exists(PathBuf),
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, std::io::Error),
    #[error("cannot read {0}: {1}; --ca wants a directory that polydist-cert init has made")]
    Read(PathBuf, std::io::Error),
    #[error("the certificate cannot be made: {0}")]
    Issue(#[from] rcgen::Error),
}

fn main() -> ExitCode {
    let Cli {
        command: Command::Init(init),
    } = Cli::parse();
    match run(&init) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("polydist-cert: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(init: &Init) -> Result<(), Error> {
    let authority = match &init.ca {
        Some(dir) => files::read_authority(dir)?,
        None => issue::authority(init.days)?,
    };
    let common_name = init.name.as_ref().unwrap_or(&init.hosts[0]); // clap requires one
    let identity = issue::identity(&authority, common_name, &init.hosts, init.days)?;
    files::write(
        &init.dir,
        &authority,
        &identity,
        init.ca.is_none(),
        init.force,
    )?;
    println!("{}", init.dir.join("dist_tls.conf").display());
    Ok(())
}
