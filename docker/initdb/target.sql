-- A target as Walferry finds it: its user is no superuser.
CREATE ROLE avnadmin LOGIN CREATEDB CREATEROLE PASSWORD 'avnadmin';
GRANT SET ON PARAMETER session_replication_role TO avnadmin;
ALTER DATABASE shop OWNER TO avnadmin;
